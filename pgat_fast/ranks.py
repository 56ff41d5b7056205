"""What torchrun says of this process in its environment. Imports no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether it is the one that writes files and speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def local_rank() -> int:
    """Which of the processes on this machine it is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def restarts() -> int:
    """How often all of them have been started anew, after one ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def may_be_restarted() -> bool:
    """Whether torchrun would start all of them anew if this one ended with an error."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > restarts()


@contextmanager
def stopped_quietly() -> Iterator[None]:
    """Let a run that was asked to stop end with 0 where torchrun would take any other code for a reason to restart."""
    from pgat_fast.errors import StopRequested

    try:
        yield
    except StopRequested:
        if not may_be_restarted():
            raise
        os._exit(0)
