"""The folder of a run: made, found again, locked, its state written down."""

import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pgat_fast.errors import ConfigError
from pgat_fast.utils.io import write_json

if TYPE_CHECKING:
    from pgat_fast.config import Config

CHECKPOINTS = "checkpoints"
RESULT_FILES = (
    "results.json", "forecasts.csv", "adjacency.csv", "intervals.json", "plots", "report.html",
)  # fmt: skip
"""What is written of a run when it has ended."""


def new_folder(output: Path, name: str) -> Path:
    """Make and return an empty folder `name` in `output`, or `name-2`, `name-3`, ...: no run overwrites another."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = output / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise ConfigError(f"run.output {output}: cannot make a folder there: {error.strerror}") from error
    raise AssertionError("unreachable")


def run_folders(output: Path, name: str) -> list[Path]:
    """The folders that `new_folder` may have made for `name`, newest first, those of a run named `name-9` included."""
    numbered = {name: 1}
    for path in output.iterdir() if output.is_dir() else ():
        stem, dash, number = path.name.rpartition("-")
        if dash and stem == name and number.isdecimal():
            numbered[path.name] = int(number)
    found = [path for path in numbered if (output / path).is_dir()]
    return [output / path for path in sorted(found, key=numbered.__getitem__, reverse=True)]


def has_checkpoints(folder: Path) -> bool:
    """Whether a checkpoint has ever been saved in the run folder."""
    return any((folder / CHECKPOINTS).glob("*/manifest.json"))


def run_of_job(job: str, config: "Config", resume: Path | None) -> Path | None:
    """The run that an earlier start of `job` has begun and saved, or gone on with; None where there is none yet.

    `resume`: what the job was to go on with.
    """
    folders = run_folders(Path(config.run.output), config.run.name)
    folders += [] if resume is None else [checkpoint_of(resume)[0]]
    own = next((folder for folder in folders if read_status(folder).get("job") == job), None)
    return own if own is not None and has_checkpoints(own) else None


def checkpoint_of(path: Path) -> tuple[Path, str | None]:
    """The run folder of `path`, and the name of the checkpoint where `path` is one: what `--resume PATH` means."""
    if (path / CHECKPOINTS).is_dir():
        return path, None
    if path.parent.name == CHECKPOINTS and path.is_dir():
        return path.parent.parent, path.name
    if path.name == CHECKPOINTS and path.is_dir():
        return path.parent, None
    raise ConfigError(f"{path}: neither the folder of a run (it has no {CHECKPOINTS}/) nor a checkpoint of one")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. The operating system lets go of it when the process ends, however it ends.

    Raises ConfigError at once where another process holds it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        owner = read_status(folder)
        who = f" (process {owner['pid']} on {owner['host']})" if "pid" in owner else ""
        raise ConfigError(
            f"{folder}: another process{who} is at work in this folder; wait for it, or choose another run.name"
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Whether another process is at work in `folder`."""
    if not (folder / ".lock").exists():
        return False
    try:
        with locked(folder):
            return False
    except ConfigError:
        return True


class _LogFile(logging.FileHandler):
    """A log file that may fail, on a full disk say, without ending a run or filling the screen with tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is that of logging
        pass


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Append what the loggers of `pgat_fast` say, from INFO on, to `train.log` in `folder`."""
    ours = logging.getLogger("pgat_fast")
    handler = _LogFile(folder / "train.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.setLevel(logging.INFO)
    level = ours.level
    if ours.getEffectiveLevel() > logging.INFO:
        ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
        handler.close()


def set_results_aside(folder: Path) -> Path | None:
    """Move what an earlier end of the run wrote into a folder of its own; returns it, or None where there is nothing.

    A run that goes on has no results until it ends again: old ones must not be taken for its own.
    """
    found = [folder / name for name in RESULT_FILES if (folder / name).exists()]
    if not found:
        return None
    aside = folder / "earlier-results"
    number = 2
    while aside.exists():
        aside, number = folder / f"earlier-results-{number}", number + 1
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    return aside


def write_status(folder: Path, state: str, **more: Any) -> None:
    """Write `status.json`: `state` is running, stopped, failed or finished; `more` says why and where."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"state": state, "reason": "", "exit_code": None}
    process = {"time": now, "pid": os.getpid(), "host": platform.node()}
    write_json(folder / "status.json", content | more | process)


def read_status(folder: Path) -> dict[str, Any]:
    """What `write_status` wrote; empty where there is nothing that can be read."""
    try:
        content = json.loads((folder / "status.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
