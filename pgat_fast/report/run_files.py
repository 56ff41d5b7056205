"""What the folder of a run holds, read into plain structures; of an unfinished run, whatever is there."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgat_fast.errors import CheckpointError, DataError
from pgat_fast.report.tables import Adjacency, Forecasts, read_adjacency, read_forecasts
from pgat_fast.training.manifest import MANIFEST, NAME, decode_manifest
from pgat_fast.training.run_folder import CHECKPOINTS

_MARKS = ("status.json", "config.yaml", "results.json")
"""A folder without any of these is no run."""

_LATE = "written when the best weights have been tested, at the end of a run"
_PURPOSE = {
    "status.json": "written from the beginning of a run on",
    "config.yaml": "written from the beginning of a run on",
    "metrics.jsonl": "written from the beginning of a run on, unless run.metrics_level is off",
    "memory.jsonl": "written from the beginning of a run on, unless run.memory_level is off",
    "results.json": _LATE,
    "forecasts.csv": _LATE,
    "adjacency.csv": _LATE,
    "checkpoints": "the first one is written before the first step",
}

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class RunFiles:
    """The files of a run. What is not there is empty or None, and `missing` says why."""

    folder: Path
    status: Record = field(default_factory=dict)
    results: Record = field(default_factory=dict)
    """`results.json`; empty where the run is not finished."""
    metrics: list[Record] = field(default_factory=list)
    memory: list[Record] = field(default_factory=list)
    forecasts: Forecasts | None = None
    adjacency: Adjacency | None = None
    config: str | None = None
    """The text of `config.yaml`."""
    checkpoints: list[str] = field(default_factory=list)
    """Names, oldest first."""
    best: str | None = None
    """Name of the best checkpoint, as far as the run has come."""
    settings: Record = field(default_factory=dict)
    """The configuration, section -> key -> value; empty where neither results nor a checkpoint tell of it."""
    missing: dict[str, str] = field(default_factory=dict)
    """File -> why it is not there, in words."""

    @property
    def name(self) -> str:
        return str(self.results.get("name") or self.folder.resolve().name)

    @property
    def state(self) -> str:
        """`running`, `stopped`, `failed`, `finished`, or `unknown` where nothing says."""
        return str(self.status.get("state") or ("finished" if self.results else "unknown"))

    @property
    def memory_limits(self) -> Record:
        """`limit_gib` and `device_limit_gib`, None where there is no limit, or none is known of."""
        if self.results:
            return {key: self.results["memory"].get(key) for key in ("limit_gib", "device_limit_gib")}
        settings = self.settings.get("run", {})
        return {
            "limit_gib": settings.get("memory_limit_gb"),
            "device_limit_gib": settings.get("device_memory_limit_gb"),
        }

    @property
    def epochs(self) -> list[Record]:
        """The epochs that have been validated: those of the results, else those in metrics.jsonl."""
        if self.results:
            return list(self.results["epochs"])
        return [
            {
                "epoch": line.get("epoch"),
                "learning_rate": line.get("learning_rate"),
                "train_loss": line.get("train_loss"),
                "validation_loss": line.get("validation_loss"),
                "seconds": line.get("epoch_seconds"),
            }
            for line in self.metrics
            if line.get("stage") == "validation" and isinstance(line.get("epoch"), int)
        ]

    @property
    def best_epoch(self) -> int | None:
        """The number of the epoch with the lowest validation loss; None before the first."""
        if self.results:
            return int(self.results["best_epoch"])
        known = [
            (e["validation_loss"], e["epoch"]) for e in self.epochs if isinstance(e["validation_loss"], int | float)
        ]
        return min(known)[1] if known else None


def read_run(folder: Path) -> RunFiles:
    """Read the run in `folder`, finished or not.

    Raises DataError where `folder` is no run, and for a damaged file, which the message names. A damaged checkpoint
    is no error here: `pgat-fast checkpoint verify` is for that.
    """
    if not any((folder / name).is_file() for name in _MARKS):
        what = f"it has none of {', '.join(_MARKS)}" if folder.is_dir() else "there is no such folder"
        raise DataError(f"{folder}: {what}: name the folder of a run, such as runs/quickstart")
    status = _read_object(folder / "status.json") or {}
    results = _read_results(folder / "results.json")
    names, about = _checkpoints(folder / CHECKPOINTS)
    state = str(status.get("state") or ("finished" if results else "unknown"))
    return RunFiles(
        folder=folder,
        status=status,
        results=results,
        metrics=_read_lines(folder / "metrics.jsonl"),
        memory=_read_lines(folder / "memory.jsonl"),
        forecasts=read_forecasts(folder / "forecasts.csv"),
        adjacency=read_adjacency(folder / "adjacency.csv"),
        config=_read_text(folder / "config.yaml"),
        checkpoints=names,
        best=results["checkpoints"]["best"] if results else about.get("best"),
        settings=results["config"] if results else about.get("config", {}),
        missing={
            name: _why_missing(state, purpose) for name, purpose in _PURPOSE.items() if not (folder / name).exists()
        },
    )


def _why_missing(state: str, purpose: str) -> str:
    if purpose == _LATE and state != "finished":
        return f"{purpose}; this one is {state}" if state != "unknown" else purpose
    return f"{purpose}: it was moved or deleted" if state == "finished" else purpose


def _read_text(path: Path) -> str | None:
    """The text of `path`; None where there is no such file. Raises DataError."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: damaged: byte {error.start} is no UTF-8 text; restore the file") from error


def _read_object(path: Path) -> Record | None:
    text = _read_text(path)
    if text is None:
        return None
    try:
        content = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise DataError(f"{path}: nested too deeply; restore the file, or delete it") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged, or no JSON: {error}; restore the file, or delete it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, not an object; restore the file, or delete it")
    return content


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _read_results(path: Path) -> Record:
    content = _read_object(path)
    if content is None:
        return {}
    from pydantic import ValidationError

    from pgat_fast.training.results_schema import checked

    try:
        return checked(content)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:3]]
        raise DataError(
            f"{path}: not what this version of pgat-fast writes: {'; '.join(faults)}; restore the file, or report on "
            "the run with the version that made it"
        ) from error


def _read_lines(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    from pgat_fast.monitoring.jsonl_logger import read_jsonl

    try:
        return read_jsonl(path)
    except (OSError, ValueError) as error:
        message = str(error)
        raise DataError(message if str(path) in message else f"{path}: cannot be read: {message}") from error


def _checkpoints(root: Path) -> tuple[list[str], Record]:
    """Names of the checkpoints in `root`, oldest first, and what the newest readable one says of itself."""
    if not root.is_dir():
        return [], {}
    found = [path for path in root.iterdir() if NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    found.sort(key=lambda path: int(path.name.rpartition("-")[2]))
    about: Record = {}
    for path in reversed(found):
        try:
            about = decode_manifest((path / MANIFEST).read_bytes()).about
            break
        except (OSError, CheckpointError):
            continue
    return [path.name for path in found], about
