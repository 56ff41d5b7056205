"""What torchrun says of this process in its environment. Imports no torch."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ADDRESS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that say where ranks meet."""

CODE_FILE = "PGAT_FAST_EXIT_CODE_FILE"
"""Environment variable that names a file for the exit code of a run that ends for good, see `ends_for_good`."""


def _number(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip()
    return int(value) if value.isdecimal() else default


def is_distributed() -> bool:
    """Whether this process is one of several that train together: torchrun sets all of these variables."""
    return _number("WORLD_SIZE", 1) > 1 and all(os.environ.get(name) for name in _ADDRESS)


def by_torchrun() -> bool:
    """Whether torchrun has started this process, be it the only one that is left of several."""
    return bool(os.environ.get("TORCHELASTIC_RUN_ID")) and all(os.environ.get(name) for name in _ADDRESS)


def is_main() -> bool:
    """Whether it is the one that writes files and speaks."""
    return not is_distributed() or _number("RANK", 0) == 0


def local_rank() -> int:
    """Which of the processes on this machine it is."""
    return _number("LOCAL_RANK", 0)


def restarts() -> int:
    """How often this machine's processes have been started anew, after one ended."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) if by_torchrun() else 0


_agreed: bool | None = None


def may_be_restarted() -> bool:
    """Whether torchrun would start all of them anew if this one ended with an error: on any of their machines."""
    if _agreed is not None:
        return _agreed
    return by_torchrun() and _number("TORCHELASTIC_MAX_RESTARTS", 0) > restarts()


def agree_on_restarts(any_may: bool) -> None:
    """From now on `may_be_restarted` answers so, in all of them: each machine counts its own restarts."""
    global _agreed
    _agreed = any_may


def job() -> str | None:
    """The name of the job that all starts of it have in common; None where there is none of its own."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "") if by_torchrun() else ""
    return None if name in ("", "none") else name


def end_for_good(code: int) -> None:
    """End this process. Torchrun, which takes every code but 0 for a reason to start again, is told 0 where it would.

    The code itself goes into the file that `CODE_FILE` names, if it does.
    """
    if not may_be_restarted():
        os._exit(code)
    if is_main() and os.environ.get(CODE_FILE):
        Path(os.environ[CODE_FILE]).write_text(str(code))
    os._exit(0)


@contextmanager
def ends_for_good() -> Iterator[None]:
    """Within it, what would come again after a restart, or was asked for, ends the run for good: see `end_for_good`."""
    from pgat_fast import exit_codes
    from pgat_fast.errors import PgatError, RankError, StopRequested

    try:
        yield
    except (StopRequested, PgatError) as error:
        if isinstance(error, RankError) or not may_be_restarted():
            raise
        if is_main():
            print(f"{'stopped' if isinstance(error, StopRequested) else 'error'}: {error}", file=sys.stderr, flush=True)
        end_for_good(exit_codes.of_error(error))
