"""Helpers to test in a new process, without memory left by earlier tests, and to measure processor time."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def seconds_of_children() -> float:
    """Return the processor time of ended child processes, in seconds; other load on the machine does not count."""
    times = os.times()
    return times.children_user + times.children_system


def in_own_process(function: Callable[..., None], *arguments: object) -> None:
    """Call a module-level function in a new process and re-raise its exceptions."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(function, *arguments).result()
