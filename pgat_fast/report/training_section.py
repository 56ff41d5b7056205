"""Values that the page shows about the training: epochs, memory, speed, events, checkpoints."""

import statistics
from collections.abc import Iterator
from typing import Any

from pgat_fast.report.formatting import NumberTable, format_duration, format_name, format_number
from pgat_fast.report.run_files import RunFiles

_SPEEDS = {
    "seconds_per_step": "seconds per step",
    "windows_per_second": "windows per second",
    "samples_per_second": "samples per second (days of history)",
}


def summarize_training(run: RunFiles) -> dict[str, Any]:
    """Prepare what the templates `training_section.html.j2` and `run_section.html.j2` show."""
    return {
        "summary": _summarize_epochs(run),
        "epochs": _tabulate_epochs(run),
        "memory": dict(_find_peak_memory(run)),
        "speed": _tabulate_speed([line for line in run.metrics if line.get("stage") == "train"]),
        "events": list(_select_events(run)),
        "checkpoints": _list_checkpoints(run),
    }


def _summarize_epochs(run: RunFiles) -> dict[str, object]:
    summary: dict[str, object] = {"epochs": len(run.epochs)}
    if run.results:
        summary["training ended"] = run.results["training_ended"]
        summary["training time"] = format_duration(run.results["training_seconds"])
        summary["evaluation time"] = format_duration(run.results["evaluation_seconds"])
        summary["validation loss before training"] = run.results["initial_validation_loss"]
    best = [epoch["validation_loss"] for epoch in run.epochs if epoch.get("epoch") == run.best_epoch]
    if best:
        summary["best validation loss"] = f"{format_number(best[-1], 6)} in epoch {run.best_epoch}"
    return summary


def _tabulate_epochs(run: RunFiles) -> NumberTable:
    header = ["epoch", "learning rate", "steps", "skipped steps", "train loss", "validation loss", "time"]
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
    return NumberTable("Metrics of each epoch", header, rows)


def _find_peak_memory(run: RunFiles) -> Iterator[tuple[str, str]]:
    """Yield label and value of each peak, and of the limits where the results have them."""
    memory = run.results.get("memory")
    if memory is None:
        for key in ("process_peak_gib", "device_peak_allocated_gib"):
            readings = [line[key] for line in run.memory if isinstance(line.get(key), float)]
            if readings:
                yield _format_memory(key, max(readings))
        return
    for key, value in memory.items():
        if "device" not in key or memory.get("peak_device_gib") is not None:
            yield _format_memory(key, value)


def _format_memory(key: str, gib: float | None) -> tuple[str, str]:
    return format_name(key.removesuffix("_gib")), "none" if gib is None else f"{format_number(gib, 3)} GiB"


def _tabulate_speed(steps: list[dict[str, Any]]) -> NumberTable:
    rows = []
    for key, label in _SPEEDS.items():
        values = [float(line[key]) for line in steps if isinstance(line.get(key), int | float)]
        if values:
            rows.append((label, statistics.median(values), min(values), max(values)))
    note = f"From {len(steps)} readings during training."
    return NumberTable("Speed", ["", "median", "minimum", "maximum"], rows, note)


def _select_events(run: RunFiles) -> Iterator[dict[str, Any]]:
    for line in run.metrics:
        is_problem = str(line.get("level")).upper() in ("WARNING", "ERROR")
        if is_problem or line.get("stage") in ("start", "resume", "stop", "error", "end"):
            messages = [str(line[key]) for key in ("error", "reason", "message", "checkpoint") if line.get(key)]
            event = {key: line.get(key) for key in ("epoch", "step")}
            event |= {key: line.get(key, "") for key in ("time", "stage")}
            yield event | {"is_problem": is_problem, "message": "; ".join(messages)}


def _list_checkpoints(run: RunFiles) -> list[tuple[str, str, bool]]:
    """Return name, role and whether it still exists for every checkpoint that the results or the folder name."""
    record = run.results.get("checkpoints", {})
    names = list(dict.fromkeys([*record.get("kept", []), *run.checkpoints]))
    latest = record.get("latest", names[-1] if names else None)
    roles = {name: ["best"] * (name == run.best) + ["latest"] * (name == latest) for name in names}
    return [(name, ", ".join(roles[name]), name in run.checkpoints) for name in names]
