"""glibc setting that keeps freed memory in the process, so that chunk buffers are reused without new page faults."""

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_LARGEST = 32 * 2**20
"""Size in bytes up to which blocks are allocated on the heap: the most that all versions of glibc accept."""
_KEPT = 2**30
"""Free bytes that are kept at the end of the heap."""


def _address_space_is_limited() -> bool:
    import resource  # not on Windows

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


@cache
def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks below 32 MiB, up to 1 GiB of them, in this process.

    By default glibc returns blocks of some MiB to the system when they are freed, until its dynamic threshold has
    adapted: until then every buffer of a chunk is new memory, whose pages the kernel maps and clears one by one. The
    function does nothing with another C library, if the environment already sets one of `MALLOC_TRIM_THRESHOLD_`,
    `MALLOC_MMAP_THRESHOLD_` and `GLIBC_TUNABLES`, or if the address space of the process is limited. The setting
    applies to the whole process and cannot be undone.

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
        library.gnu_get_libc_version  # noqa: B018 - exists in glibc only
        settings = (_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT)
        return all(library.mallopt(name, value) == 1 for name, value in settings)
    except (OSError, AttributeError):
        return False
