"""Training runs for tests: start, stop at a chosen point, and compare."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgat_fast import load_config
from pgat_fast.errors import StopRequested
from pgat_fast.training.checkpoint import Checkpoint, newest_good
from pgat_fast.training.run import train
from pgat_fast.training.signals import Stop

TIMES = ("seconds", "started", "finished", "time", "created", "peaks", "resumes", "path", "output", "name")
"""Keys whose values differ between two runs of one seed or depend on the number of interruptions."""


class StopAt(Stop):
    """Requests a stop at the n-th call of `check`, counted from 1."""

    def __init__(self, number: float = math.inf) -> None:
        super().__init__()
        self.number, self.asked = number, 0

    def check(self) -> None:
        self.asked += 1
        if self.asked >= self.number:
            raise StopRequested(f"stopped at question {self.asked}")


def run(overrides: list[str], folder: Path, *, resume: Path | None = None, stop: Stop | None = None) -> dict[str, Any]:
    """Train in the new folder `folder`, or resume the run there; return the results."""
    config = load_config(None, [*overrides, f"run.output={folder.parent}", f"run.name={folder.name}"])
    run_folder, results = train(config, resume=resume, stop=stop, progress=False)
    assert run_folder == folder
    return results


def interrupted(overrides: list[str], folder: Path, stops: list[float]) -> dict[str, Any]:
    """Stop a run at the given numbers of checks, counted anew after each stop, and resume it to its end."""
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
    loaded = newest_good(folder / "checkpoints")
    assert loaded is not None
    return loaded[1]


def without_times(tree: Any) -> Any:
    """Return a copy without the keys that differ between runs, at any depth; tensors become their bytes."""
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
    """Return everything that must be equal, to the bit, in two runs of one seed."""
    checkpoint = newest(folder)
    results = json.loads((folder / "results.json").read_bytes())
    # The use of memory and the kept checkpoints are not part of the computation; every process has its own first
    # compiled step.
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
    """Assert that both outcomes are equal, part by part, since a message with all weights would be useless."""
    assert one.keys() == other.keys()
    for key in one:
        assert one[key] == other[key], f"{key} differ"
