"""Environment variables that torchrun sets in each rank, and the exit code of a rank. Does not import torch."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from pgat_fast import exit_codes

EXIT_CODE_FILE = "PGAT_FAST_EXIT_CODE_FILE"
"""Environment variable: the file to which the first rank writes its exit code if torchrun gets 0, see `end_process`."""

_RESTARTABLE = (exit_codes.FAILED, exit_codes.RANK_LOST)
"""Exit codes after which a restart can help. A process killed by a signal never reaches `exit_process`."""


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name, "").strip()
    return int(value) if value.isdecimal() else default


def rank() -> int:
    """Return the number of this process among all ranks, from 0; 0 without torchrun."""
    return _integer("RANK", 0) if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks; 1 without torchrun."""
    return _integer("WORLD_SIZE", 1)


def local_rank() -> int:
    """Return the number of this process among the ranks of this machine, from 0."""
    return _integer("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Return the number of ranks on this machine."""
    return _integer("LOCAL_WORLD_SIZE", local_rank() + 1)


def is_distributed() -> bool:
    """Return whether this process is one of several ranks."""
    return world_size() > 1 and all(os.environ.get(name) for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"))


def is_main() -> bool:
    """Return whether this process writes the files and the log: rank 0, or the only process."""
    return rank() == 0


def job_id() -> str | None:
    """Return the identifier that all starts of this job by torchrun share; None without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID")


def restart_count() -> int:
    """Return how many times torchrun has restarted the ranks of this machine."""
    return _integer("TORCHELASTIC_RESTART_COUNT", 0) if job_id() else 0


def restarts_left() -> int:
    """Return how many more times torchrun may restart the ranks of this machine."""
    return _integer("TORCHELASTIC_MAX_RESTARTS", 0) - restart_count() if job_id() else 0


def shares_agent_store() -> bool:
    """Return whether torchrun's agent keeps one key-value store for all starts of the job."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def end_process(code: int) -> NoReturn:
    """End this process at once with exit code `code`, from any thread, without finalizing the interpreter.

    torchrun restarts the job after every exit code except 0. So while restarts are left, a run that must not be
    restarted (a stop, wrong input, a loss that is not finite) returns 0 to torchrun, and the first rank writes `code`
    to the file that `EXIT_CODE_FILE` names.
    """
    if is_main() and os.environ.get(EXIT_CODE_FILE):
        Path(os.environ[EXIT_CODE_FILE]).write_text(str(code), encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed stream or broken pipe
            if stream is not None:
                stream.flush()
    os._exit(exit_codes.SUCCESS if restarts_left() > 0 and code not in _RESTARTABLE else code)


def exit_process(code: int) -> NoReturn:
    """Exit with code `code`, from the main thread; a rank uses `end_process`, since torch may still have threads."""
    if job_id() or is_distributed():
        end_process(code)
    sys.exit(code)
