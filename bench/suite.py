"""Shared parts of the `pytest bench` benchmarks: shapes, synchronized timing, and memory, in a separate call."""

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.backend_spec import PRODUCTION, QUICKSTART
from bench.measure import PeakMemory, count_saved
from pgat_fast import load_config
from pgat_fast.config.schema import Config
from pgat_fast.monitoring.memory import release_caches
from pgat_fast.utils.device import synchronize
from pgat_fast.utils.system import GIB

TIMESTEPS: Final = {"small": 16, "production": 4000}
"""Shape -> timesteps of the inputs of operators; `production` corresponds to a batch of 16."""
SECONDS: Final = 0.5
"""Approximate duration of all rounds of a benchmark together, in seconds."""
ROUNDS: Final = (5, 50)
"""Minimum and maximum number of rounds."""
LONG: Final = 2.0
"""Duration of a call, in seconds, from which `FEW` rounds are enough."""
FEW: Final = 2


def configuration(shape: str, combiner: str, *overrides: str) -> Config:
    """Return the configuration for `combiner` with the sizes of `shape`: `small` (the quickstart's) or `production`."""
    path = QUICKSTART if shape == "small" else PRODUCTION[combiner]
    return load_config(path, [f"model.combiner={combiner}", "training.batch_size=1", *overrides])


def median_seconds(benchmark: BenchmarkFixture) -> float:
    """Return the median duration of the rounds of `benchmark`, which has run."""
    assert benchmark.stats is not None
    return float(benchmark.stats.stats.median)


def measure(
    benchmark: BenchmarkFixture,
    run: Callable[..., Any],
    device: torch.device,
    *,
    setup: Callable[[], Any] | None = None,
    ignored: Callable[[], tuple[Tensor, ...]] = tuple,
    saves: bool = True,
) -> None:
    """Time `run` after a warm-up, measure its memory in one more call, and record both in `benchmark`.

    Args:
        benchmark: the fixture.
        run: the function to time, until the device has finished. It may return a tensor with a graph, which is freed.
        device: the device on which it runs.
        setup: returns the argument of `run`; called before each call, untimed.
        ignored: returns tensors that exist in any case, which do not count as saved for the backward pass.
        saves: whether `run` includes a forward pass; only then are saved bytes recorded.
    """

    def timed(*arguments: Any) -> None:
        run(*arguments)
        synchronize(device)

    def prepared() -> tuple[tuple[Any, ...], dict[str, Any]]:
        call_arguments = () if setup is None else (setup(),)
        synchronize(device)
        return call_arguments, {}

    def seconds() -> float:
        arguments = prepared()[0]
        started = time.perf_counter()
        timed(*arguments)
        return time.perf_counter() - started

    fewest, most = ROUNDS
    rounds = FEW
    if seconds() < LONG:  # the first call allocates memory and detects the features of the processor
        rounds = min(most, max(fewest, int(SECONDS / seconds())))
    benchmark.pedantic(timed, setup=prepared, rounds=rounds)

    arguments = prepared()[0]
    release_caches()
    memory = PeakMemory(device)
    with count_saved(ignored()) as saved:
        result = run(*arguments)
        synchronize(device)
    benchmark.extra_info["peak_memory_mib"] = memory.above_baseline() / 2**20
    if saves:
        benchmark.extra_info["saved_for_backward_bytes"] = saved.total
    reserved = memory.reserved()
    if reserved is not None:
        benchmark.extra_info["reserved_memory_gib"] = reserved / GIB
    saved.forget()
    del result
