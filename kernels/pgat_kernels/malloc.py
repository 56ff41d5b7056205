"""Freed memory stays with the process: buffers of chunks are reused instead of fetched again, page by page."""

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST = 32 * 2**20
"""Bytes up to which a block lies on the heap: the most that all versions of glibc accept."""
_KEPT = 2**30
"""Free bytes at the end of the heap that are kept."""


def _address_space_is_limited() -> bool:
    import resource  # not on Windows

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


@cache
def keep_freed_memory() -> bool:
    """Have the C library of Linux (glibc) keep freed blocks below 32 MiB, and up to 1 GiB of them, in this process.

    By default it gives blocks of some MiB back to the system as soon as they are free, until it has learnt better: then
    every buffer of a chunk is new memory, whose pages the kernel hands out and clears one by one. Nothing is done where
    the C library is another one, where the environment already sets one of `MALLOC_TRIM_THRESHOLD_`,
    `MALLOC_MMAP_THRESHOLD_` and `GLIBC_TUNABLES`, or where the address space of the process is limited. The setting
    holds for the whole process, and for good.

    Returns:
        Whether it was set.

    Source: mallopt(3).
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys():
        return False
    if sys.platform != "linux" or _address_space_is_limited():
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        library.gnu_get_libc_version  # noqa: B018 - the name of the C library
        settings = (_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT)
        return all(library.mallopt(name, value) == 1 for name, value in settings)
    except (OSError, AttributeError):
        return False
