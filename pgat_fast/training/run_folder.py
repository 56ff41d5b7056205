"""Folder of a run: creation, lookup, lock, log, status and results."""

import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from pgat_fast.errors import ConfigError
from pgat_fast.utils.io import first_unused, write_json
from pgat_kernels.process_settings import SharedSetting

if TYPE_CHECKING:
    from pgat_fast.config import Config

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
RESULT_FILES = (
    "results.json", "forecasts.csv", "adjacency.csv", "intervals.json", "plots", "report.html",
)  # fmt: skip
"""Files and folders that are written when a run ends."""


def new_folder(output: Path, name: str) -> Path:
    """Make and return a new folder `name`, or `name-2`, `name-3`, ..., in `output`; no run overwrites another."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        while True:
            folder = unused_path(output / name)
            with suppress(FileExistsError):  # another process has just made it
                folder.mkdir()
                return folder
    except OSError as error:
        raise ConfigError(f"run.output {output}: cannot make a folder there: {error.strerror}") from error


def unused_path(path: Path) -> Path:
    """Return `path`, or the first of `path-2`, `path-3`, ... that does not exist."""
    names = chain([path.name], (f"{path.name}-{number}" for number in count(2)))
    return first_unused(map(path.with_name, names))


def run_folders(output: Path, name: str) -> list[Path]:
    """Return the folders that `new_folder` may have made for `name`, newest first; includes a run named `name-9`."""
    numbered = {name: 1}
    for path in output.iterdir() if output.is_dir() else ():
        stem, dash, number = path.name.rpartition("-")
        if dash and stem == name and number.isdecimal():
            numbered[path.name] = int(number)
    existing = [path for path in numbered if (output / path).is_dir()]
    return [output / path for path in sorted(existing, key=numbered.__getitem__, reverse=True)]


def has_checkpoints(folder: Path) -> bool:
    """Return whether a checkpoint has ever been saved in the run folder."""
    return any((folder / CHECKPOINTS).glob("*/manifest.json"))


def run_of_job(job: str, config: "Config", resume: Path | None) -> Path | None:
    """Return the folder of the run that an earlier start of `job` began or resumed; None without a saved checkpoint.

    `resume` is the run or checkpoint that the job was asked to resume.
    """
    folders = run_folders(Path(config.run.output), config.run.name)
    folders += [] if resume is None else [checkpoint_of(resume)[0]]
    run_folder = next((folder for folder in folders if read_status(folder).get("job") == job), None)
    return run_folder if run_folder is not None and has_checkpoints(run_folder) else None


def checkpoint_of(path: Path) -> tuple[Path, str | None]:
    """Return the run folder that `--resume PATH` means, and the name of the checkpoint if `path` is one."""
    if (path / CHECKPOINTS).is_dir():
        return path, None
    if path.parent.name == CHECKPOINTS and path.is_dir():
        return path.parent.parent, path.name
    if path.name == CHECKPOINTS and path.is_dir():
        return path.parent, None
    raise ConfigError(f"{path}: neither the folder of a run (it has no {CHECKPOINTS}/) nor a checkpoint of one")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` for this process. The operating system releases the lock when the process ends, however it ends.

    Raises ConfigError at once if another process holds the lock.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        owner = read_status(folder)
        description = f" (process {owner['pid']} on {owner['host']})" if "pid" in owner else ""
        raise ConfigError(
            f"{folder}: another process{description} is using this folder; wait for it, or choose another run.name"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the lock of `folder`."""
    if not (folder / ".lock").exists():
        return False
    try:
        with locked(folder):
            return False
    except ConfigError:
        return True


class _LogFile(logging.FileHandler):
    """Log file whose errors, such as a full disk, neither end the run nor print tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - name defined by logging
        pass


_LOGGER: Final = logging.getLogger("pgat_fast")
_LEVEL: Final = SharedSetting(lambda: _LOGGER.level, _LOGGER.setLevel)


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Append the messages of the loggers of `pgat_fast`, from level INFO, to `train.log` in `folder`."""
    handler = _LogFile(folder / "train.log", encoding="utf-8", errors="backslashreplace", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    level = logging.INFO if _LOGGER.getEffectiveLevel() > logging.INFO else _LOGGER.level
    with _LEVEL.set_to(level):
        _LOGGER.addHandler(handler)
        try:
            yield
        finally:
            _LOGGER.removeHandler(handler)
            handler.close()


def move_earlier_results(folder: Path) -> None:
    """Move the results of an earlier end of the run, if there are any, into a separate folder.

    A resumed run has no results until it ends again, and earlier ones must not be taken for them.
    """
    paths = [folder / name for name in RESULT_FILES if (folder / name).exists()]
    if not paths:
        return
    target = unused_path(folder / "earlier-results")
    target.mkdir()
    for path in paths:
        path.rename(target / path.name)
    logger.info("the results of the earlier end of this run are now in %s", target)


def write_status(folder: Path, state: str, **more: Any) -> None:
    """Write `status.json`: `state` is running, stopped, failed or finished; `more` gives the reason and the place."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"state": state, "reason": "", "exit_code": None}
    process = {"time": now, "pid": os.getpid(), "host": platform.node()}
    write_json(folder / "status.json", content | more | process)


def read_status(folder: Path) -> dict[str, Any]:
    """Return the content of `status.json`; an empty dict if it cannot be read."""
    try:
        content = json.loads((folder / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def finished_results(folder: Path) -> dict[str, Any] | None:
    """Return the content of `results.json` of a finished run; None if the run is not finished."""
    path = folder / "results.json"
    if read_status(folder).get("state") != "finished" or not path.is_file():
        return None
    return json.loads(path.read_bytes())
