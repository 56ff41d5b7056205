"""Time and memory of production training steps, with torch and triton alone: one process for each way to compute them.

`bench.gpu.measure` runs it first. A step is the one that `pgat-fast train` takes with default settings: forward and
backward pass with dropout, clipping, Adam, repeatable algorithms. Inputs are random numbers. Eager steps are timed as
they are, and with gradients computed by one CUDA graph.
"""

import os
import sys
from collections.abc import Callable
from statistics import median
from typing import Any, Final, NamedTuple

import torch

from bench.gpu.cost_model import EPOCH_STEPS
from bench.gpu.production import build, settings_of
from bench.processes import do_task, run_task
from bench.result_files import Record, load
from bench.timing import seconds_of
from pgat_fast.data.batch import Batch, example
from pgat_fast.errors import DataError
from pgat_fast.model.compilation import compile_in_place
from pgat_fast.model.precision import Precision, resolve_precision
from pgat_fast.monitoring.memory import process_memory
from pgat_fast.training.optimizer_step import OptimizerStep, make_optimizer
from pgat_fast.training.rng import CUBLAS_WORKSPACE, use_deterministic_algorithms
from pgat_fast.utils.system import GIB

MODULE: Final = "bench.gpu.headline"


class Way(NamedTuple):
    """A way to compute training steps."""

    combiner: str
    backend: str
    compiled: str
    """`eager`; `compiled` by `torch.compile`; `graphs`: the compiled passes are replayed as CUDA graphs."""
    limit: float
    """Seconds that its process may take."""

    @property
    def name(self) -> str:
        return f"{self.combiner}, {self.backend}, {self.compiled}"


FIRST: Final = (
    Way("batched", "torch", "eager", 30),
    Way("batched", "reference", "eager", 30),
    Way("batched", "triton", "eager", 50),
    Way("batched", "reference", "compiled", 70),
)
"""The headline: these take at most three minutes together."""
LATER: Final = (
    Way("hierarchical", "triton", "eager", 60),
    Way("hierarchical", "torch", "eager", 60),
    Way("batched", "triton", "graphs", 120),
    Way("batched", "torch", "graphs", 120),
    Way("batched", "reference", "graphs", 120),
    Way("hierarchical", "reference", "eager", 60),
    Way("hierarchical", "triton", "graphs", 150),
    Way("hierarchical", "torch", "graphs", 150),
    Way("batched", "torch", "compiled", 120),
    Way("batched", "triton", "compiled", 120),
    Way("hierarchical", "reference", "compiled", 150),
)
"""What follows after parity and repeatability, as long as there is time."""
TARGETS: Final = {
    "batched": {"step_seconds": 0.020, "epoch_seconds": 8.5, "peak_memory_gib": 3},
    "hierarchical": {"step_seconds": 0.110, "epoch_seconds": 47, "peak_memory_gib": 8},
}
"""Targets on an H100, with bf16 products, batch 16."""
BATCH: Final = 16
STEPS: Final = 10
WARM_UP: Final = 3
"""Steps before the timed ones: the first compiles, CUDA graphs are recorded in the second."""


def time_of(way: Way, device: torch.device, environment: dict[str, str], limit: float, **sizes: Any) -> Record:
    """Return the figures of a way, from a process of its own that takes at most `limit` seconds.

    Args:
        way: what to time.
        device: where.
        environment: further environment variables of the process.
        limit: on a GPU, at most that of the way counts.
        sizes: `batch`, `steps`, `warm_up`, and other settings of the `model`, to try the program out.
    """
    task = {**way._asdict(), "device": str(device), **sizes}
    limit = min(limit, way.limit) if device.type == "cuda" else limit  # interpreted kernels are slow
    record = run_task(MODULE, task, limit, environment)
    if "error" in record:
        return {"ok": False, **record}
    record["epoch_seconds"] = EPOCH_STEPS * min(record["step_seconds"], record.get("graph_step_seconds", float("inf")))
    modelled = modelled_seconds(way.combiner, record["gpu"]) if way.backend == "triton" else None
    return {"ok": True, **record, "modelled_step_seconds": modelled, "target": TARGETS.get(way.combiner)}


def modelled_seconds(combiner: str, gpu: str | None) -> float | None:
    """Return what the committed cost model says of a step with all kernels on this GPU; None if it does not know it."""
    try:
        gpus = load(f"cost_model_{combiner}", "offline")["gpus"]
    except DataError:
        return None
    totals = [entry["totals"]["seconds"] for name, entry in gpus.items() if gpu is not None and name in gpu]
    return float(totals[0]) if totals else None


def measure(task: Record) -> Record:
    """Return the figures of one way, in its own process."""
    device = torch.device(task["device"])
    os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    use_deterministic_algorithms(device.type == "cuda")
    torch.manual_seed(0)
    precision: Precision = resolve_precision("auto", device)
    model_settings, training = settings_of(task["combiner"], **task.get("model", {}))
    model = build(task["backend"], model_settings).to(device)
    if task["compiled"] != "eager":
        graphs = task["compiled"] == "graphs"
        if task["backend"] == "reference":  # as a user would
            model.compile(dynamic=False, mode="reduce-overhead" if graphs else None)
        else:
            compile_in_place(model, device, graphs=graphs)
    step = OptimizerStep(
        model, make_optimizer(model, training), model_settings, training, precision, device,
        graphs=device.type == "cuda" and (task["compiled"] != "compiled"),
    )  # fmt: skip
    batch = Batch(*(x.to(device) for x in example(model_settings, task.get("batch", BATCH))))

    def gradients() -> torch.Tensor:
        return step.accumulate([lambda: batch])

    warm_up, steps = task.get("warm_up", WARM_UP), task.get("steps", STEPS)
    seconds = seconds_of(lambda: step.apply(gradients(), 1), warm_up + steps, device)
    record: Record = {
        "step_seconds": median(seconds[warm_up:]),
        "first_step_seconds": seconds[0],
        "peak_memory_gib": peak_memory(device),
        "precision": precision,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
    if task["compiled"] == "eager":
        try:
            replay = captured(gradients, device)
            seconds = seconds_of(lambda: step.apply(replay(), 1), 1 + steps, device)
            record["graph_step_seconds"] = median(seconds[1:])
            record["graph_peak_memory_gib"] = peak_memory(device)
        except Exception as error:  # what has been measured without a graph is kept
            record["graph_error"] = f"{type(error).__name__}: {error}"[:500]
    if step.flags.raised(wait=True):
        raise RuntimeError("a step was not finite and thus left out: the timings mean nothing")
    return record


def captured(gradients: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor]:
    """Return a function that computes the gradients by replaying one CUDA graph; the same function on a CPU."""
    if device.type != "cuda":
        return gradients
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = gradients()

    def replay() -> torch.Tensor:
        graph.replay()
        return losses

    return replay


def peak_memory(device: torch.device) -> float:
    """Return the peak in GiB: of torch's allocator on a GPU, of the process elsewhere."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else process_memory()[1]


if __name__ == "__main__":
    sys.exit(do_task(measure, sys.argv[2]))
