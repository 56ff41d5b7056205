"""Runs for tests: started, stopped at a place of choice, compared."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgat_fast import load_config
from pgat_fast.errors import StopRequested
from pgat_fast.training.checkpoint import Checkpoint, newest_good
from pgat_fast.training.stop import Stop
from pgat_fast.training.trainer import train

TIMES = ("seconds", "started", "finished", "time", "created", "peaks", "resumes", "path", "output", "name")
"""Keys of what differs between two runs of one seed, or says how often the run was interrupted."""


class StopAt(Stop):
    """Stops at the n-th question whether to, counted from 1."""

    def __init__(self, number: float = math.inf) -> None:
        super().__init__()
        self.number, self.asked = number, 0

    def check(self) -> None:
        self.asked += 1
        if self.asked >= self.number:
            raise StopRequested(f"stopped at question {self.asked}")


def run(overrides: list[str], folder: Path, *, resume: Path | None = None, stop: Stop | None = None) -> dict[str, Any]:
    """Train into `folder`, which must not exist yet, or go on there."""
    config = load_config(None, [*overrides, f"run.output={folder.parent}", f"run.name={folder.name}"])
    written, results = train(config, resume=resume, stop=stop, progress=False)
    assert written == folder
    return results


def interrupted(overrides: list[str], folder: Path, stops: list[float]) -> dict[str, Any]:
    """A run that is stopped at each of `stops` questions (counted anew each time), and resumed to its end."""
    resume = None
    for number in stops:
        try:
            run(overrides, folder, resume=resume, stop=StopAt(number))
        except StopRequested:
            pass
        else:
            raise AssertionError(f"the run ended before question {number}")
        resume = folder
    return run(overrides, folder, resume=resume)


def newest(folder: Path) -> Checkpoint:
    found = newest_good(folder / "checkpoints")
    assert found is not None
    return found[1]


def without_times(tree: Any) -> Any:
    """A copy without the keys that differ between runs, at any depth; tensors become lists of their bytes."""
    if isinstance(tree, dict):
        return {
            key: without_times(value)
            for key, value in tree.items()
            if not (isinstance(key, str) and (key in TIMES or key.endswith("_seconds")))
        }
    if isinstance(tree, list | tuple):
        return [without_times(value) for value in tree]
    if isinstance(tree, Tensor):
        return (
            (str(tree.dtype), tuple(tree.shape), tree.contiguous().view(torch.uint8).numpy().tobytes())
            if (tree.dim())
            else (str(tree.dtype), tree.item())
        )
    return tree


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that two runs of one seed must have in common, to the bit."""
    checkpoint = newest(folder)
    results = json.loads((folder / "results.json").read_bytes())
    # How memory was used, and which checkpoints were kept, is no part of what was computed; the first compiled step is
    # one of each process.
    for key in ("memory", "checkpoints", "checklist", "compile_check"):
        results.pop(key)
    return {
        "weights": without_times(checkpoint.weights),
        "training": without_times(checkpoint.training),
        "results": without_times(results),
        "forecasts": (folder / "forecasts.csv").read_bytes(),
        "adjacency": (folder / "adjacency.csv").read_bytes(),
        "intervals": (folder / "intervals.json").read_bytes(),
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare part by part: a message of all weights would help nobody."""
    assert one.keys() == other.keys()
    for key in one:
        assert one[key] == other[key], f"{key} differ"
