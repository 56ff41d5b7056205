"""What torchrun says of this process in its environment, and how a run of several ends for good. Imports no torch."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_ADDRESS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that say where ranks meet."""

CODE_FILE = "PGAT_FAST_EXIT_CODE_FILE"
"""Environment variable that names a file for the exit code of a run that ends for good, see `ends_for_good`."""

_OVER = "pgat_fast/over"
_SAY_SECONDS = 2.0
"""That a process which ends waits for the store to know why: it may be busy, or gone."""


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


def local_size() -> int:
    """How many there are on this machine."""
    return _number("LOCAL_WORLD_SIZE", local_rank() + 1)


def restarts() -> int:
    """How often this machine's processes have been started anew, after one ended."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) if by_torchrun() else 0


# --- ending -----------------------------------------------------------------------------------------------------------
# torchrun takes every exit code but 0 for a reason to start all again. A run that ends for good says so to the other
# ranks, which end then, too, and for the same reason: without it they would find somebody missing.

_store: Any = None
"""Where the ranks of this start of the job note things for each other, once they have met."""
_agreed: bool | None = None


def may_be_restarted() -> bool:
    """Whether torchrun would start all of them anew if this one ended with an error: on any of their machines."""
    if _agreed is not None:
        return _agreed
    return by_torchrun() and _number("TORCHELASTIC_MAX_RESTARTS", 0) > restarts()


def joined(store: Any) -> None:
    """Ranks have met at `store` (of torch), which is theirs alone."""
    global _store
    _store = store.clone()  # a connection of its own: the other one is taken as long as somebody waits there
    if is_main() and os.environ.get(CODE_FILE):
        Path(os.environ[CODE_FILE]).unlink(missing_ok=True)  # of an earlier start


def agree_on_restarts(any_may: bool) -> None:
    """From now on `may_be_restarted` answers so, in all of them: each machine counts its own restarts."""
    global _agreed
    _agreed = any_may


def over() -> int | None:
    """The exit code with which a rank has ended the run for good; None where none has, or nobody can tell."""
    with suppress(Exception):
        if _store is not None and _store.check([_OVER]):
            return int(_store.get(_OVER))
    return None


_SIGTERM = 128 + 15


def _say_over(code: int) -> None:
    """Let the others know, if they do not yet. Not of a SIGTERM: torchrun sends it before it starts all again.

    (One that a user sends to a rank is agreed on between steps; in the middle of a long one it is taken for that.)
    """

    def say() -> None:
        with suppress(Exception):  # it may be gone, with the processes that could have read it
            _store.compare_set(_OVER, "", str(code))

    if _store is not None and code != _SIGTERM:
        saying = threading.Thread(target=say, daemon=True)
        saying.start()
        saying.join(_SAY_SECONDS)


def end_for_good(code: int) -> None:
    """End this process, and the run. Torchrun is told 0 where it would start again.

    The code itself goes into the file that `CODE_FILE` names, if it does.
    """
    _say_over(code)
    if not may_be_restarted():
        os._exit(code)
    if is_main() and os.environ.get(CODE_FILE):
        Path(os.environ[CODE_FILE]).write_text(str(code))
    os._exit(0)


def leave(code: int) -> None:
    """End this process; one of several without taking the interpreter apart: torch's threads may be at work in it, and
    one of them that wants to go on then makes an abort of the end.
    """
    if not is_distributed():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it
            stream.flush()
    os._exit(code)


@contextmanager
def ends_for_good() -> Iterator[None]:
    """Within it, what would come again after a restart, or was asked for, ends the run for good: see `end_for_good`.

    A rank that is lost does not, unless it has ended the run for good itself.
    """
    from pgat_fast import exit_codes
    from pgat_fast.errors import PgatError, RankError, StopRequested

    try:
        yield
    except (StopRequested, PgatError) as error:
        code = over() if isinstance(error, RankError) else exit_codes.of_error(error)
        if code is None or _store is None:  # before ranks have met nobody could be told
            raise
        if not may_be_restarted():
            _say_over(code)
            raise
        if isinstance(error, RankError):
            print("another rank has ended the run for good", file=sys.stderr, flush=True)
        elif is_main() or not isinstance(error, StopRequested):
            print(f"{'stopped' if isinstance(error, StopRequested) else 'error'}: {error}", file=sys.stderr, flush=True)
        end_for_good(code)
