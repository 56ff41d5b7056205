"""Files of JSON lines that a run writes while it runs, and that survive whatever happens to it or to them."""

import errno
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger("pgat_fast.monitoring")

Level = Literal["debug", "info", "warning", "error"]
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}
QUIET_SECONDS = 600.0
"""How long a journal that cannot be written says nothing more of it."""
_BLOCK = 65_536


class Journal:
    """A file of JSON lines with a logger of its own, which takes further handlers like any other.

    The logger is in no registry and has no parent: its lines reach no console, and nothing of it outlives the run.
    No method raises.
    """

    def __init__(self, path: Path, lowest: str) -> None:
        """Open `path` for appending; lines below the level `lowest` (a key of `LEVELS`) are not written."""
        self.logger = logging.Logger(f"pgat_fast.monitoring.{path.stem}", LEVELS[lowest])
        self._handler = None if lowest == "off" else JsonLinesHandler(path)
        if self._handler is not None:
            self.logger.addHandler(self._handler)

    def wants(self, level: Level) -> bool:
        """Whether lines of `level` are written."""
        return LEVELS[level] >= self.logger.level

    def write(self, level: Level, line: Mapping[str, Any]) -> None:
        """Append `line`, if its level is high enough."""
        if self.wants(level):
            # `Logger.log` would obey `logging.disable`, which is meant for messages, not for the record of a run.
            self.logger.handle(self.logger.makeRecord(self.logger.name, LEVELS[level], "", 0, dict(line), (), None))

    def close(self) -> None:
        """Close the file, and say if lines are missing in it."""
        if self._handler is not None:
            self.logger.removeHandler(self._handler)
            self._handler.close()
        self.logger.setLevel(LEVELS["off"])


class JsonLinesHandler(logging.Handler):
    """Writes records whose message is a mapping, each as one line, whole or not at all.

    What goes wrong is said once on the logger `pgat_fast.monitoring`; every line tries anew.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.setFormatter(JsonFormatter(path))
        self.lost = 0
        """Lines that could not be written."""
        self._descriptor = -1
        self._identity = (0, 0)
        self._ends_torn = False
        self._failing = False
        self._warned = -math.inf
        try:
            self._open()
        except OSError as error:
            self._fail(error)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._append(self.format(record).encode() + b"\n")
        except Exception as error:  # whatever it is, training is worth more than a line
            self.lost += 1
            self._fail(error)
        else:
            if self._failing:
                logger.info("%s is written again; %d lines are missing in it", self.path, self.lost)
            self._failing = False

    def close(self) -> None:
        self.acquire()
        try:
            self._close()
            if self.lost:
                logger.warning("%s: %d lines could not be written", self.path, self.lost)
            self.lost = 0
        finally:
            self.release()
        super().close()

    def _append(self, line: bytes) -> None:
        if not self._is_ours() or not self._is_in_place():
            was_open = self._descriptor >= 0
            self._close()
            self._open()
            if was_open:
                logger.warning("%s was closed, removed or replaced while the run writes it: opened anew", self.path)
        if self._ends_torn:
            line = b"\n" + line
        written = os.write(self._descriptor, line)
        if written < len(line):
            self._ends_torn = True
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            self._ends_torn = False
            raise OSError(errno.ENOSPC, "there is no space for a whole line")
        self._ends_torn = False

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(self.path, flags, 0o666)
        self._identity = _identity(os.fstat(self._descriptor))
        self._ends_torn = False
        cut = _cut_partial_line(self._descriptor)
        if cut:
            logger.info("%s: %d bytes of a line that a killed process left unfinished were cut off", self.path, cut)

    def _close(self) -> None:
        # A descriptor that somebody else closed may be another file by now, which is not ours to close.
        if self._is_ours():
            os.close(self._descriptor)
        self._descriptor = -1

    def _is_ours(self) -> bool:
        """Whether the descriptor still is the file that was opened."""
        try:
            return self._descriptor >= 0 and _identity(os.fstat(self._descriptor)) == self._identity
        except OSError:
            return False

    def _is_in_place(self) -> bool:
        """Whether the file that was opened still is the one at `path`."""
        try:
            return _identity(os.stat(self.path)) == self._identity
        except OSError:
            return False

    def _fail(self, error: Exception) -> None:
        self._failing = True
        if time.monotonic() - self._warned >= QUIET_SECONDS:
            self._warned = time.monotonic()
            logger.warning(
                "%s cannot be written: %s; the run goes on, and every further line is tried", self.path, error
            )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _cut_partial_line(descriptor: int) -> int:
    """Cut off what follows the last end of a line; returns how many bytes that were."""
    size = position = os.fstat(descriptor).st_size
    end = 0
    while position > 0 and end == 0:
        step = min(position, _BLOCK)
        position -= step
        os.lseek(descriptor, position, os.SEEK_SET)
        found = os.read(descriptor, step).rfind(b"\n")
        end = position + found + 1 if found >= 0 else 0
    if end < size:
        os.ftruncate(descriptor, end)
    return size - end


class JsonFormatter(logging.Formatter):
    """Writes a mapping as one line of strict JSON; a value that JSON cannot hold becomes null, and is named once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._told: set[str] = set()

    def format(self, record: logging.LogRecord) -> str:
        line: Any = record.msg
        return "{" + ", ".join(f"{json.dumps(str(key))}: {self._text(key, line[key])}" for key in line) + "}"

    def _text(self, key: str, value: Any) -> str:
        try:
            return json.dumps(to_plain(value), allow_nan=False)
        except Exception as error:
            if key not in self._told:
                self._told.add(key)
                logger.warning(
                    "%s: %s cannot be written as JSON (%s: %s); it is null there", self.path, key,
                    type(error).__name__, error,
                )  # fmt: skip
            return "null"


def to_plain(value: Any) -> Any:
    """What JSON can hold of `value`: numbers of numpy and torch as numbers, NaN and infinities as None.

    Raises TypeError for what has no such form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, date):  # a datetime is one too
        return value.isoformat()
    if hasattr(value, "tolist"):  # arrays and scalars of numpy, tensors: no import of torch for the sake of a report
        return to_plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, oldest first; none where there is no file (its level was `off`).

    Leaves out what a resumed run did again: after a line of stage `resume`, earlier lines of training and checkpoints
    with a higher step, and validations with a higher step or of an epoch that was not over at that checkpoint. Leaves
    out, with a warning, lines that are no JSON objects; an unfinished last line goes without one.

    Raises OSError where the file is there and cannot be read.
    """
    try:
        parts = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    lines: list[dict[str, Any]] = []
    damaged = []
    for number, part in enumerate(parts, 1):
        if not part:
            continue
        try:
            line = json.loads(part)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            if number < len(parts):
                damaged.append(number)
            continue
        if line.get("stage") == "resume":
            lines = [earlier for earlier in lines if not _superseded(earlier, line)]
        lines.append(line)
    if damaged:
        logger.warning("%s: %d damaged lines are left out, the first is line %d", path, len(damaged), damaged[0])
    return lines


def _superseded(earlier: dict[str, Any], resume: dict[str, Any]) -> bool:
    """Whether the run that went on at `resume` did again what `earlier` tells of."""
    stage = earlier.get("stage")
    if stage not in ("train", "validation", "checkpoint"):
        return False
    step, resumed_at = earlier.get("step"), resume.get("step")
    if isinstance(step, int) and isinstance(resumed_at, int) and step > resumed_at:
        return True
    # At that very step: the validation of an epoch whose end the checkpoint did not see comes again.
    epoch = earlier.get("epoch")
    return stage == "validation" and epoch is not None and epoch == resume.get("epoch")
