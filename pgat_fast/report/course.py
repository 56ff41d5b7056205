"""The sections of the page that say how the run went, and with what."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from pgat_fast.report.markup import (
    Html,
    Section,
    badge,
    code,
    duration,
    facts,
    folded,
    heading,
    join,
    moment,
    number,
    paragraph,
    prose,
    raw,
    section,
    table,
)
from pgat_fast.report.outcome import Figures, plain
from pgat_fast.report.run_files import RunFiles

_MOST_EVENTS = 100
_GAUGES = {"seconds_per_step": "seconds a step", "windows_per_second": "windows a second",
           "samples_per_second": "samples a second (days of history)"}  # fmt: skip


def course_sections(run: RunFiles, figures: Figures) -> Iterator[Section]:
    """Training, speed and memory, adjacency, events, checkpoints, configuration, data, versions, what is missing."""
    yield section("training", "Training", *_training(run, figures))
    yield section("memory", "Memory and speed", *_memory(run, figures))
    if "adjacency" in figures:
        yield section("adjacency", "Adjacency", figures["adjacency"])
    if events := list(_events(run)):
        rows = events[-_MOST_EVENTS:]
        note = f"The last {_MOST_EVENTS} of {len(events)}." if len(events) > len(rows) else ""
        yield section("events", "What happened", table(("time", "what", "epoch", "step", "said"), rows, note))
    yield section("checkpoints", "Checkpoints", *_checkpoints(run))
    if run.results:
        data = dict(run.results["data"])
        windows = data.pop("windows")
        pairs = {
            **{plain(key): value for key, value in data.items()},
            **{f"{k} windows": v for k, v in windows.items()},
        }
        yield section("data", "Data", facts(pairs))
    if run.config is not None:
        yield section("configuration", "Configuration", folded("config.yaml", code(run.config)))
    if run.results:
        pairs = {**run.results["versions"], "device": run.results["device"], "backend": run.results["backend"]}
        pairs |= {"precision": run.results["precision"], "compiled": run.results.get("compiled", False)}
        yield section("versions", "Versions", facts(pairs))
    if run.missing:
        yield section("missing", "What is not there", table(("file", "why"), list(run.missing.items())))


def _training(run: RunFiles, figures: Figures) -> Iterator[Html]:
    epochs, results = run.epochs, run.results
    if not epochs and "losses" not in figures:
        yield paragraph("No epoch has been validated and no training step has been noted yet.")
        return
    summary: dict[str, object] = {"epochs": len(epochs)}
    if results:
        summary["training ended"] = results["training_ended"]
        summary["training time"] = duration(results["training_seconds"])
        summary["evaluation time"] = duration(results["evaluation_seconds"])
        summary["validation loss before training"] = results["initial_validation_loss"]
    best = [epoch for epoch in epochs if epoch.get("epoch") == run.best_epoch]
    if best:
        summary["best validation loss"] = f"{number(best[-1]['validation_loss'], 6)} in epoch {run.best_epoch}"
    yield facts(summary)
    yield join(figures[name] for name in ("losses", "learning_rate") if name in figures)
    if epochs:
        rows = [
            (
                f"{epoch.get('epoch')}" + ("" if epoch.get("complete", True) else " (part)"),
                _rate(epoch.get("learning_rate")),
                number(epoch.get("optimizer_steps")),
                number(epoch.get("skipped_steps")),
                number(epoch.get("train_loss"), 5),
                number(epoch.get("validation_loss"), 5),
                duration(epoch.get("seconds")),
            )
            for epoch in epochs
        ]
        header = ("epoch", "learning rate", "steps", "steps left out", "train loss", "validation loss", "time")
        yield folded("Figures of every epoch", table(header, rows))


def _rate(value: object) -> str:
    return f"{value:.3e}" if isinstance(value, float) else number(value)


def _memory(run: RunFiles, figures: Figures) -> Iterator[Html]:
    if run.results:
        memory = run.results["memory"]
        on_device = memory.get("peak_device_gib") is not None
        yield facts({_gib(key): _amount(value) for key, value in memory.items() if on_device or "device" not in key})
    elif run.memory:
        keys = ("process_peak_gib", "device_peak_allocated_gib")
        peaks = {key: [line[key] for line in run.memory if isinstance(line.get(key), float)] for key in keys}
        yield facts({_gib(key): _amount(max(values)) for key, values in peaks.items() if values})
    else:
        yield paragraph("No memory readings.")
    if "memory" in figures:
        yield figures["memory"]
    steps = [line for line in run.metrics if line.get("stage") == "train"]
    rows = []
    for key, label in _GAUGES.items():
        values = [float(line[key]) for line in steps if isinstance(line.get(key), int | float)]
        if values:
            rows.append((label, *(number(f(values)) for f in (statistics.median, min, max))))
    if rows:
        yield heading("Speed")
        yield table(("", "median", "lowest", "highest"), rows, f"From {len(steps)} readings while training.")


def _gib(key: str) -> str:
    return plain(key.removesuffix("_gib"))


def _amount(value: object) -> str:
    return f"{number(value, 3)} GiB" if isinstance(value, int | float) else "none"


def _events(run: RunFiles) -> Iterator[tuple[Any, ...]]:
    for line in run.metrics:
        level = str(line.get("level", "INFO")).upper()
        if line.get("stage") in ("start", "resume", "stop", "error", "end") or level in ("WARNING", "ERROR"):
            said = [str(line[key]) for key in ("error", "reason", "message", "checkpoint") if line.get(key)]
            kind = "bad" if level in ("WARNING", "ERROR") else "neutral"
            yield (
                raw(moment(line.get("time", ""))),
                raw(badge(line.get("stage", ""), kind)),
                number(line.get("epoch")),
                number(line.get("step")),
                "; ".join(said),
            )


def _checkpoints(run: RunFiles) -> Iterator[Html]:
    told: Mapping[str, Any] = run.results.get("checkpoints", {})
    names = list(dict.fromkeys([*told.get("kept", []), *run.checkpoints]))
    if not names:
        yield paragraph("No checkpoint is there.")
        return
    rows = []
    for name in names:
        here = name in run.checkpoints
        roles = ["best"] * (name == run.best) + ["latest"] * (name == told.get("latest", names[-1]))
        rows.append((name, ", ".join(roles), "there" if here else "no longer there"))
    yield table(("checkpoint", "role", "now"), rows)
    if told:
        yield facts({"all verified at the end": told["verified"]})
        for fault in told["faults"]:
            yield paragraph(fault)
    else:
        yield prose("Not verified by this report: `pgat-fast checkpoint verify RUN` does that.", "note")
