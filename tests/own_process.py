"""For tests of processes: of their memory, for in this one others have left theirs behind, and of their time."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def seconds_of_children() -> float:
    """Of the processor, for the processes that this one has started and that have ended: whatever else is running."""
    times = os.times()
    return times.children_user + times.children_system


def in_own_process(function: Callable[..., None], *arguments: object) -> None:
    """Call a function of a module in a new process; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(function, *arguments).result()
