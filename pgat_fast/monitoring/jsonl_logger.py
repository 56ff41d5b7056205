"""Write and read files of JSON lines, such as metrics.jsonl."""

import errno
import json
import logging
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger("pgat_fast.monitoring")

Level = Literal["debug", "info", "warning", "error"]
LEVELS = ("debug", "info", "warning", "error", "off")


class JsonlLogger:
    """Logger that appends lines of JSON to a file.

    No method raises. The first failure is logged on `pgat_fast.monitoring`, and every later line is tried, so that
    writing continues once the cause is gone. `lost` counts the lines that could not be written; `close` logs it.

    Args:
        path: the file; it is created with the first line.
        min_level: one of `LEVELS`; lines below it are not written.
    """

    def __init__(self, path: Path, min_level: str) -> None:
        self.path = path
        self.lost = 0
        self._min_level = LEVELS.index(min_level)
        self._warned: set[str] = set()
        self._lock = threading.RLock()

    def is_enabled_for(self, level: Level) -> bool:
        """Return whether lines of `level` are written."""
        return LEVELS.index(level) >= self._min_level

    def log(self, level: Level, values: Mapping[str, Any]) -> None:
        """Append `values` as one line if `level` is enabled. A value that has no JSON form becomes null."""
        if not self.is_enabled_for(level):
            return
        try:
            fields = (f"{json.dumps(str(name))}: {self._encode(name, value)}" for name, value in values.items())
            self._append(f"{{{', '.join(fields)}}}\n".encode())
        except Exception as error:  # monitoring must not end a run
            self.lost += 1
            self._warn_once("", "%s cannot be written: %s; later lines will be tried", self.path, error)

    def close(self) -> None:
        """Log how many lines were lost, and write no more lines."""
        if self.lost:
            logger.warning("%s: %d lines could not be written", self.path, self.lost)
        self.lost, self._min_level = 0, LEVELS.index("off")

    def _append(self, line: bytes) -> None:
        """Write `line` by a single call, after the last whole line: a killed process may have left a part of one."""
        with self._lock, self.path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            if size and file.read(1) != b"\n":
                file.seek(0)
                size = file.truncate(file.read().rfind(b"\n") + 1)
                logger.info("%s: removed an unfinished line from its end", self.path)
            if file.write(line) < len(line):
                file.truncate(size)
                raise OSError(errno.ENOSPC, "no space left for a whole line")

    def _encode(self, name: str, value: Any) -> str:
        try:
            return json.dumps(to_plain(value), allow_nan=False)
        except Exception as error:
            message = "%s: %s is written as null because it has no JSON form: %r"
            self._warn_once(name, message, self.path, name, error)
            return "null"

    def _warn_once(self, cause: str, message: str, *values: object) -> None:
        if cause not in self._warned:
            self._warned.add(cause)
            logger.warning(message, *values)


def to_plain(value: Any) -> Any:
    """Convert `value` to what JSON can hold: numbers of NumPy and torch to numbers, NaN and infinities to None.

    Raises TypeError for a value that has no JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy, tensors; torch need not be imported
        return to_plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that JsonlLogger wrote, oldest first; an empty list if there is no file.

    Leaves out lines that a resumed run replaced: those of training and checkpoints before a line of stage `resume`
    with a higher step, and validations with a higher step or of the epoch that the run resumed in. Leaves out damaged
    lines with one warning, and an unfinished last line without.

    Raises OSError if the file cannot be read.
    """
    try:
        parts = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    lines: list[dict[str, Any]] = []
    damaged = []
    for number, part in enumerate(parts, 1):
        try:
            line = json.loads(part or "null")
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            if line.get("stage") == "resume":
                lines = [earlier for earlier in lines if not _is_replaced(earlier, line)]
            lines.append(line)
        elif part and number < len(parts):
            damaged.append(number)
    if damaged:
        logger.warning("%s: skipped %d damaged lines, the first is line %d", path, len(damaged), damaged[0])
    return lines


def _is_replaced(line: dict[str, Any], resume: dict[str, Any]) -> bool:
    """Return whether the run that resumed at `resume` repeated what `line` records."""
    stage = line.get("stage")
    if stage not in ("train", "validation", "checkpoint"):
        return False
    step, resumed_step = line.get("step"), resume.get("step")
    if isinstance(step, int) and isinstance(resumed_step, int) and step > resumed_step:
        return True
    # At the same step: the validation of an epoch that had not ended at the checkpoint is repeated.
    epoch = line.get("epoch")
    return stage == "validation" and epoch is not None and epoch == resume.get("epoch")
