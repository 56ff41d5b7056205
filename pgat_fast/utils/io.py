"""Writing files so that a reader, or a crash, never sees half of one."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, Final

_TEMPORARY: Final = re.compile(r"\..+\.([0-9]{1,10})\.tmp", re.DOTALL)
_CLOCKS: Final = 1.0
"""Seconds by which the start of a process and the time of a file that it wrote later may seem swapped."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, sync it to disk, rename it, sync the folder.

    Makes missing folders. Raises OSError where that fails; `path` then holds what it held before, or, where nothing
    but the last sync failed, `content`. A killed process leaves the temporary file, `.NAME.PID.tmp`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON that any parser reads: NaN and infinities raise ValueError."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def temporary_name(path: Path) -> Path:
    """Where this process writes what is to become `path`: beside it, hidden, with the number of the process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_orphan(path: Path) -> bool:
    """Whether `path` has a `temporary_name` of a process of this machine that has ended.

    Numbers of processes are used again: what is older than the process that has its number now is an orphan too.
    """
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    import psutil

    try:
        process = psutil.Process(int(match[1]))
        started = process.create_time()
        return process.status() == psutil.STATUS_ZOMBIE or path.lstat().st_mtime < started - _CLOCKS
    except psutil.NoSuchProcess:
        return True
    except (psutil.AccessDenied, OSError):
        return False


def sync_directory(path: Path) -> None:
    """Make the names in the folder `path` survive a power cut, where the file system can do that."""
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
