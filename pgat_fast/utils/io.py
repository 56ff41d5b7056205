"""Reading of regular files, and atomic writes: no reader sees a partial file, not even after a crash."""

import errno
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

_TEMPORARY: Final = re.compile(r"\..+\.([0-9]{1,10})\.tmp", re.DOTALL)
_CLOCKS: Final = 1.0
"""Tolerance in seconds when the start of a process is compared with the time of a file it wrote later."""


def read_regular_file(path: Path, advice: str, limit: int | None = None) -> bytes:
    """Return the content of the file at `path`. Opens regular files only: reading a pipe or a device could block.

    Raises OSError if there is none, or if it cannot be read or is larger than `limit` bytes. The text of the error is
    the reason and `advice`, which states what to do; it does not name the file.
    """
    try:
        if path.is_file():
            with path.open("rb") as file:
                content = file.read(-1 if limit is None else limit + 1)
            if limit is None or len(content) <= limit:
                return content
            problem = f"the file is larger than {limit // 1024} KiB"
        elif path.is_dir():
            problem = "this is a directory"
        else:
            problem = "this is not a regular file" if path.exists() else "the file does not exist"
    except OSError as error:
        problem = f"the file cannot be read ({error.strerror})"
    raise OSError(f"{problem}: {advice}")


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, sync it to disk, rename it, sync the folder.

    Creates missing folders. Raises OSError on failure; `path` then has its previous content, or `content` if only the
    last sync failed. A killed process leaves the temporary file, `.NAME.PID.tmp`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write `content` to `path` and sync the file to disk. Raises OSError, which names the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` atomically as standard JSON. NaN and infinities raise ValueError."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def first_unused(paths: Iterable[Path]) -> Path:
    """Return the first of `paths` where there is nothing, not even a dangling link."""
    return next(path for path in paths if not os.path.lexists(path))


def temporary_name(path: Path) -> Path:
    """Return the temporary path that this process renames to `path`: beside it, hidden, with the process id."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_orphan(path: Path) -> bool:
    """Return whether `path` is a `temporary_name` of a process of this machine that has ended.

    Process ids are reused: a file older than the process that has its id now is an orphan too.
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
    """Sync the names in the folder `path` to disk, so that they survive a power cut, if the file system can."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
