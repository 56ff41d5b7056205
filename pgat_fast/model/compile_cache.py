"""Cache of compiled code between runs, protected against damaged files.

torch stores compiled code in a folder of temporary files, which a reboot empties. g++ writes libraries there in place:
a process killed during compilation leaves an incomplete one, and every later run fails to load it. This module uses a
folder in the user's cache, one for each version of torch and Python. A list records all files that were complete when a
run ended its compilation. The next run removes files that differ from the list, and compiles them again.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import struct
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from pgat_fast.utils.io import write_atomically
from pgat_kernels.process_settings import SharedSetting

logger = logging.getLogger(__name__)

VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable from which torch reads the folder; users set it to choose another folder."""
LIST: Final = "pgat-fast.json"
TIMES: Final = "pgat-fast-seconds.json"
"""File of compile times: program -> seconds of the first and of the last compilation."""
_LOCKS: Final = "pgat-fast.locks"
_SUFFIXES: Final = (".so", ".o", ".cpp", ".py")
"""Of files that compilers write."""


def cache_folder() -> Path:
    """Return the folder of compiled code: `TORCHINDUCTOR_CACHE_DIR` if set, otherwise one in the user's cache.

    Raises OSError if the user has no home folder.
    """
    if folder := os.environ.get(VARIABLE):
        return Path(folder).absolute()
    versions = f"torch-{version('torch')}-python-{platform.python_version()}-{platform.machine()}"
    return user_cache() / "pgat_fast" / "compiled" / versions


def user_cache() -> Path:
    """Return the user's cache folder (XDG Base Directory Specification; conventions of Apple and Microsoft)."""
    try:
        return _conventional_cache()
    except RuntimeError as error:
        raise OSError(f"{error}; set the environment variable {VARIABLE} to a folder") from error


def _conventional_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    xdg_cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg_cache) if os.path.isabs(xdg_cache) else Path.home() / ".cache"


def cache_advice() -> str:
    """Return where compiled code is, and what to do if it cannot be used."""
    try:
        return f"compiled code is in {cache_folder()}: delete that folder if this happens again"
    except OSError as error:
        return str(error)


class CompileCache:
    """The folder of compiled code while a run uses it; see `compile_cache`."""

    def __init__(self, folder: Path, exclusive: bool) -> None:
        """
        Args:
            folder: an existing folder.
            exclusive: whether only this package writes to it.
        """
        self.folder, self._exclusive = folder, exclusive
        self._listed = self._read_list()
        self._before = set(self._files())

    def remove_damaged(self) -> list[Path]:
        """Remove and return the files that differ from the list, and unlisted files left by a killed compiler.

        If other programs write to the folder, only truncated libraries count as left by a killed compiler. Files that
        a process is compiling, according to torch's lock on them, are not removed.
        """
        removed = []
        for path in self._folders_in_place_of_files():
            with suppress(OSError):
                shutil.rmtree(path)
                removed.append(path)
        for name, path in self._files().items():
            if not self._is_damaged(name, path):
                continue
            with suppress(OSError, Timeout), self._torch_lock(path):
                if self._is_damaged(name, path):  # it may have been completed before the lock was acquired
                    path.unlink()
                    removed.append(path)
                    self._before.discard(name)
        if removed:
            with suppress(OSError):
                (self.folder / TIMES).unlink()  # the times do not hold for an incomplete cache
        return removed

    def _folders_in_place_of_files(self) -> list[Path]:
        """Return folders with the name of a listed file or of a source or library, which torch cannot replace."""
        folders = [Path(root, name) for root, names, _ in os.walk(self.folder) for name in names]
        return [
            path
            for path in folders
            if path.suffix in _SUFFIXES or path.relative_to(self.folder).as_posix() in self._listed
        ]

    def _torch_lock(self, path: Path) -> AbstractContextManager[object]:
        """Return torch's lock for building the library `path` in place; for other files a context without effect."""
        if path.suffix not in (".so", ".o"):
            return nullcontext()
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        return FileLock(locks / f"{path.name.partition('.')[0]}.lock", timeout=0)

    def _is_damaged(self, name: str, path: Path) -> bool:
        fingerprint = self._listed.get(name)
        if fingerprint is not None:
            return fingerprint != _fingerprint(path)
        return self._exclusive or (path.suffix == ".so" and not _is_whole_library(path))

    def seconds(self) -> dict[str, tuple[float, float]]:
        """Return program -> seconds of its first and of its last compilation."""
        try:
            times = json.loads((self.folder / TIMES).read_bytes())
            return {str(program): (float(first), float(last)) for program, (first, last) in times.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def note_seconds(self, program: str, seconds: float) -> None:
        """Record the seconds of this compilation of `program`."""
        times = self.seconds()
        times[program] = times.get(program, (seconds, seconds))[0], seconds
        self._write(TIMES, times)

    def record(self) -> None:
        """Add the files that are new since the start of this run to the list; they are complete now."""
        files = self._files()
        previous = self._read_list() | self._listed
        fingerprints = {name: fingerprint for name, fingerprint in previous.items() if name in files}
        fingerprints |= {name: _fingerprint(path) for name, path in files.items() if name not in self._before}
        self._listed = fingerprints
        self._write(LIST, fingerprints)

    def _write(self, name: str, content: object) -> None:
        try:
            write_atomically(self.folder / name, json.dumps(content, indent=0).encode())
        except OSError as error:
            logger.debug("%s was not written: %s", self.folder / name, error)

    def _read_list(self) -> dict[str, str]:
        try:
            fingerprints = json.loads((self.folder / LIST).read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(fingerprints, dict):
            return {}
        return {str(name): str(fingerprint) for name, fingerprint in fingerprints.items()}

    def _files(self) -> dict[str, Path]:
        """Return relative name -> path of all files except locks and the files of this class."""
        files = {}
        for root, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if name not in ("locks", _LOCKS)]
            for name in names:
                path = Path(root, name)
                relative = path.relative_to(self.folder).as_posix()
                if relative not in (LIST, TIMES) and not name.endswith((".lock", ".tmp")):
                    files[relative] = path
        return files


def _set_folder(folder: str | None) -> None:
    if folder is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = folder


def _latest_folder(folders: list[str | None]) -> str | None:
    return next((folder for folder in reversed(folders) if folder is not None), None)


_FOLDER: Final = SharedSetting(lambda: os.environ.get(VARIABLE), _set_folder, choose=_latest_folder)


@contextmanager
def compile_cache() -> Iterator[CompileCache | None]:
    """Keep the code that torch compiles within the context in `cache_folder`.

    Yields None if the folder cannot be created or written; torch then uses its own. torch reads the folder from an
    environment variable at every compilation, and also writes that variable: it is set here, and restored by the last
    thread that leaves such a context. Damaged files are removed unless another process uses the folder.
    """
    previous_folder = _FOLDER.asked()
    cache: CompileCache | None = None
    with ExitStack() as stack:
        try:
            folder = cache_folder()
            locks = folder / _LOCKS
            locks.mkdir(parents=True, exist_ok=True)
            opened = CompileCache(folder, exclusive=previous_folder is None)
            with FileLock(locks / "entering.lock", timeout=60):
                only_process = _nobody_else(locks)
                # One lock for all threads of this process.
                own_lock = FileLock(locks / f"user-{os.getpid()}.lock", 0, is_singleton=True, thread_local=False)
                stack.enter_context(own_lock)
                if only_process and (removed := opened.remove_damaged()):
                    logger.warning(
                        "%s: %d damaged or unfinished files of an earlier compilation removed, such as %s",
                        folder, len(removed), removed[0].name,
                    )  # fmt: skip
            cache = opened
        except (OSError, Timeout) as error:
            logger.warning("compiled code cannot be kept (%s): torch uses a folder of temporary files", error)
        try:
            with _FOLDER.set_to(None if cache is None else str(cache.folder)):
                yield cache
        finally:
            if cache is None and not _FOLDER.is_open():  # torch has written the name of its own folder
                _set_folder(previous_folder)


def _nobody_else(locks: Path) -> bool:
    """Return whether no other process uses the folder; remove the locks of processes that have ended."""
    only_process = True
    for path in locks.glob("user-*.lock"):
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            only_process = False
        else:
            path.unlink(missing_ok=True)
    return only_process


def _fingerprint(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _is_whole_library(path: Path) -> bool:
    """Return whether a 64-bit ELF file includes its whole section header table, which linkers write last."""
    try:
        with path.open("rb") as file:
            header = file.read(64)
        size = path.stat().st_size
    except OSError:
        return False
    if len(header) < 64 or header[:5] != b"\x7fELF\x02":
        return len(header) > 0 and header[:4] != b"\x7fELF" and sys.platform != "linux"
    (start,) = struct.unpack_from("<Q", header, 40)
    entry, count = struct.unpack_from("<HH", header, 58)
    return start > 0 and start + entry * count <= size
