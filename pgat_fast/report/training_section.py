"""Values that the page shows about the training: epochs, memory, speed, events, checkpoints."""

import statistics
from collections.abc import Iterator
from typing import Any

from pgat_fast.report.formatting import NumberTable, format_duration, format_name, format_number
from pgat_fast.report.run_files import RunFiles

_SPEEDS = {
    "seconds_per_step": "seconds a step",
    "windows_per_second": "windows a second",
    "samples_per_second": "samples a second (days of history)",
}


def summarize_training(run: RunFiles) -> dict[str, Any]:
    """Prepare what the template `training_section.html.j2` shows."""
    best = [epoch for epoch in run.epochs if epoch.get("epoch") == run.best_epoch]
    steps = [line for line in run.metrics if line.get("stage") == "train"]
    return {
        "epochs": _epoch_table(run),
        "best_validation_loss": best[-1]["validation_loss"] if best else None,
        "memory": dict(_peak_memory(run)),
        "speed": _speed_table(steps),
        "events": list(_events(run)),
        "checkpoints": _checkpoints(run),
    }


def _epoch_table(run: RunFiles) -> NumberTable:
    header = ["epoch", "learning rate", "steps", "steps left out", "train loss", "validation loss", "time"]
    rows = [
        (
            f"{epoch.get('epoch')}" + ("" if epoch.get("complete", True) else " (part)"),
            f"{rate:.3e}" if isinstance(rate := epoch.get("learning_rate"), float) else rate,
            epoch.get("optimizer_steps"),
            epoch.get("skipped_steps"),
            format_number(epoch.get("train_loss"), 5),
            format_number(epoch.get("validation_loss"), 5),
            format_duration(epoch.get("seconds")),
        )
        for epoch in run.epochs
    ]
    return NumberTable("Figures of every epoch", header, rows)


def _peak_memory(run: RunFiles) -> Iterator[tuple[str, str]]:
    """Yield label and value of each peak, and of the limits where the results have them."""
    memory = run.results.get("memory")
    if memory is None:
        for key in ("process_peak_gib", "device_peak_allocated_gib"):
            readings = [line[key] for line in run.memory if isinstance(line.get(key), float)]
            if readings:
                yield _memory_fact(key, max(readings))
        return
    for key, value in memory.items():
        if "device" not in key or memory.get("peak_device_gib") is not None:
            yield _memory_fact(key, value)


def _memory_fact(key: str, gib: float | None) -> tuple[str, str]:
    return format_name(key.removesuffix("_gib")), "none" if gib is None else f"{format_number(gib, 3)} GiB"


def _speed_table(steps: list[dict[str, Any]]) -> NumberTable:
    rows = []
    for key, label in _SPEEDS.items():
        values = [float(line[key]) for line in steps if isinstance(line.get(key), int | float)]
        if values:
            rows.append((label, statistics.median(values), min(values), max(values)))
    note = f"From {len(steps)} readings while training."
    return NumberTable("Speed", ["", "median", "lowest", "highest"], rows, note)


def _events(run: RunFiles) -> Iterator[dict[str, Any]]:
    for line in run.metrics:
        alarming = str(line.get("level")).upper() in ("WARNING", "ERROR")
        if alarming or line.get("stage") in ("start", "resume", "stop", "error", "end"):
            messages = [str(line[key]) for key in ("error", "reason", "message", "checkpoint") if line.get(key)]
            event = {key: line.get(key) for key in ("epoch", "step")}
            event |= {key: line.get(key, "") for key in ("time", "stage")}
            yield event | {"alarming": alarming, "message": "; ".join(messages)}


def _checkpoints(run: RunFiles) -> list[tuple[str, str, bool]]:
    """Return name, role and whether it still exists for every checkpoint that the results or the folder name."""
    record = run.results.get("checkpoints", {})
    names = list(dict.fromkeys([*record.get("kept", []), *run.checkpoints]))
    latest = record.get("latest", names[-1] if names else None)
    roles = {name: ["best"] * (name == run.best) + ["latest"] * (name == latest) for name in names}
    return [(name, ", ".join(roles[name]), name in run.checkpoints) for name in names]
