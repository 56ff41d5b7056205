"""For tests of a process's memory: in this one, others have left theirs behind."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def in_own_process(function: Callable[..., None], *arguments: object) -> None:
    """Call a function of a module in a new process; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(function, *arguments).result()
