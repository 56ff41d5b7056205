"""Files of a run, finished or not, read into plain structures."""

from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from pgat_fast.errors import CheckpointError, DataError
from pgat_fast.report.tables import read_adjacency, read_forecasts, read_text
from pgat_fast.training.manifest import MANIFEST, decode_manifest, find_checkpoints, strict_json
from pgat_fast.training.run_folder import CHECKPOINTS

_MARKS = ("status.json", "config.yaml", "results.json")
"""Every folder of a run has at least one of these files."""

_LATE = "written at the end of a run, after the best weights have been tested"
_PURPOSE = {
    "status.json": "written from the start of a run",
    "config.yaml": "written from the start of a run",
    "metrics.jsonl": "written from the start of a run, unless run.metrics_level is off",
    "memory.jsonl": "written from the start of a run, unless run.memory_level is off",
    "results.json": _LATE,
    "forecasts.csv": _LATE,
    "adjacency.csv": _LATE,
    "checkpoints": "the first checkpoint is written before the first step",
}

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class RunFiles:
    """Contents of the files of a run; missing files are empty or None and listed in `missing`."""

    folder: Path
    status: Record = field(default_factory=dict)
    results: Record = field(default_factory=dict)
    """`results.json`; empty for an unfinished run."""
    metrics: list[Record] = field(default_factory=list)
    memory: list[Record] = field(default_factory=list)
    forecasts: pd.DataFrame | None = None
    adjacency: pd.DataFrame | None = None
    config: str | None = None
    """The text of `config.yaml`."""
    checkpoints: list[str] = field(default_factory=list)
    """Names, oldest first."""
    best: str | None = None
    """Name of the best checkpoint so far."""
    settings: Record = field(default_factory=dict)
    """The configuration as sections of keys and values; empty if neither results nor a checkpoint contain it."""

    @property
    def name(self) -> str:
        return str(self.results.get("name") or self.folder.resolve().name)

    @property
    def state(self) -> str:
        """`running`, `stopped`, `failed`, `finished`, or `unknown` without `status.json` and results."""
        return str(self.status.get("state") or ("finished" if self.results else "unknown"))

    @property
    def missing(self) -> dict[str, str]:
        """The reason for each missing file."""
        reasons = {}
        for name, purpose in _PURPOSE.items():
            if (self.folder / name).exists():
                continue
            if self.state == "finished":
                purpose += ": it was moved or deleted"
            elif purpose == _LATE and self.state != "unknown":
                purpose += f"; this run is {self.state}"
            reasons[name] = purpose
        return reasons

    @property
    def memory_limits(self) -> Record:
        """`limit_gib` and `device_limit_gib`; None for an unlimited or unknown one."""
        if self.results:
            return {key: self.results["memory"].get(key) for key in ("limit_gib", "device_limit_gib")}
        settings = self.settings.get("run", {})
        return {
            "limit_gib": settings.get("memory_limit_gb"),
            "device_limit_gib": settings.get("device_memory_limit_gb"),
        }

    @property
    def memory_summary(self) -> dict[str, float | None]:
        """Peak memory and limits in GiB by name, from the results or else the largest values of `memory.jsonl`."""
        if self.results:
            memory = self.results["memory"]
            has_device = memory.get("peak_device_gib") is not None
            return {key: value for key, value in memory.items() if has_device or "device" not in key}
        peaks = {}
        for key in ("process_peak_gib", "device_peak_allocated_gib"):
            if readings := [line[key] for line in self.memory if isinstance(line.get(key), float)]:
                peaks[key] = max(readings)
        return peaks

    @property
    def events(self) -> list[Record]:
        """The lines of `metrics.jsonl` about starts, ends and problems."""
        stages = ("start", "resume", "stop", "error", "end")
        return [line for line in self.metrics if line.get("stage") in stages or is_problem(line)]

    @property
    def interval_levels(self) -> dict[str, list[Record]]:
        """Levels of `test.intervals` of the results in ascending order, by unit (`scaled`, `price`).

        Each has `nominal` and `mean_width`, and the coverage `overall`, `by_target` and `by_horizon`; None where there
        were too few windows. Empty without intervals, and for intervals in an unknown format.
        """
        intervals = self.results["test"]["intervals"] if self.results else None
        levels = {}
        try:
            for units in ("scaled", "price"):
                if by_unit := (intervals or {}).get(units):
                    levels[units] = sorted(map(_flatten_level, by_unit), key=itemgetter("nominal"))
        except (KeyError, TypeError):
            return {}
        return levels

    @property
    def epochs(self) -> list[Record]:
        """The validated epochs, from the results or else from `metrics.jsonl`."""
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
        """The number of the epoch with the lowest validation loss; None before the first validation."""
        if self.results:
            return int(self.results["best_epoch"])
        losses = [
            (e["validation_loss"], e["epoch"]) for e in self.epochs if isinstance(e["validation_loss"], int | float)
        ]
        return min(losses)[1] if losses else None


def read_run(folder: Path) -> RunFiles:
    """Read the files of the run in `folder`.

    Checkpoints are not verified.

    Raises DataError if `folder` is not a run, and for a damaged file, which the message names.
    """
    if not any((folder / name).is_file() for name in _MARKS):
        reason = f"it has none of {', '.join(_MARKS)}" if folder.is_dir() else "there is no such folder"
        raise DataError(f"{folder}: {reason}: name the folder of a run, such as runs/quickstart")
    status = _read_object(folder / "status.json") or {}
    results = _read_results(folder / "results.json")
    names, metadata = _read_checkpoints(folder / CHECKPOINTS)
    return RunFiles(
        folder=folder,
        status=status,
        results=results,
        metrics=_read_lines(folder / "metrics.jsonl"),
        memory=_read_lines(folder / "memory.jsonl"),
        forecasts=read_forecasts(folder / "forecasts.csv"),
        adjacency=read_adjacency(folder / "adjacency.csv"),
        config=read_text(folder / "config.yaml"),
        checkpoints=names,
        best=results["checkpoints"]["best"] if results else metadata.get("best"),
        settings=results["config"] if results else metadata.get("config", {}),
    )


def is_problem(line: Record) -> bool:
    """Return whether a line of `metrics.jsonl` is a warning or an error."""
    return str(line.get("level")).upper() in ("WARNING", "ERROR")


def _flatten_level(level: Record) -> Record:
    """Return nominal level, mean width and coverage of an interval level. Raises KeyError or TypeError."""
    coverage = {key: level["coverage"][key] for key in ("overall", "by_target", "by_horizon")}
    return {"nominal": level["nominal"], "mean_width": level["mean_width"], **coverage}


def _read_object(path: Path) -> Record | None:
    text = read_text(path)
    if text is None:
        return None
    try:
        content = strict_json(text.encode())
    except CheckpointError as error:
        raise DataError(f"{path}: {error}; restore the file, or delete it") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, not an object; restore the file, or delete it")
    return content


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
            f"{path}: not the format of this version of pgat-fast: {'; '.join(faults)}; restore the file, or write the "
            "report with the version that wrote the run"
        ) from error


def _read_lines(path: Path) -> list[Record]:
    from pgat_fast.monitoring.jsonl_logger import read_jsonl

    try:
        return read_jsonl(path)
    except (OSError, ValueError) as error:
        message = str(error)
        raise DataError(message if str(path) in message else f"{path}: cannot be read: {message}") from error


def _read_checkpoints(root: Path) -> tuple[list[str], Record]:
    """Return the names of the checkpoints in `root`, oldest first, and the metadata of the newest readable one."""
    checkpoints = [path for path in find_checkpoints(root) if (path / MANIFEST).is_file()]
    metadata: Record = {}
    for path in reversed(checkpoints):
        try:
            metadata = decode_manifest((path / MANIFEST).read_bytes()).about
            break
        except (OSError, CheckpointError):
            continue
    return [path.name for path in checkpoints], metadata
