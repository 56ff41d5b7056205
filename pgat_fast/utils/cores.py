"""Number of processor cores that this process may use. Imports nothing large."""

import os


def usable_cores() -> int:
    """Return the number of cores on which this process may run, at least 1. The machine may have more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
