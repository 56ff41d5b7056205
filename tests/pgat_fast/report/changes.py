"""Changes to a copy of the finished run."""

import json
import shutil
from pathlib import Path
from typing import Any

from pgat_fast.monitoring.jsonl_logger import read_jsonl
from pgat_fast.training.run_folder import write_status

STEPS = 5
"""Optimizer steps of an epoch."""


def results_of(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "results.json").read_text())
    return results


def make_unfinished(run: Path, state: str, *, epochs: int = 3, **status: Any) -> Path:
    """Leave of a finished run what it has written after `epochs` epochs, without checkpoints."""
    for name in ("results.json", "forecasts.csv", "adjacency.csv", "intervals.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    for path in (run / "metrics.jsonl", run / "memory.jsonl"):
        lines = [line for line in read_jsonl(path) if line["stage"] in ("start", "train", "validation")]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= epochs * STEPS))
    write_status(run, state, **status)
    return run
