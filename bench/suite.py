"""What the benchmarks of `pytest bench` share: shapes, timing that waits for the device, memory apart from it."""

import time
from collections.abc import Callable
from typing import Any, Final

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.combiner import PRODUCTION
from bench.machine import GIB
from bench.measure import PeakMemory, count_saved, give_back_freed, synchronize
from bench.parity import CONFIG
from pgat_fast import load_config
from pgat_fast.config.schema import Config

SMALL: Final = str(CONFIG)
TIMESTEPS: Final = {"small": 16, "production": 4000}
"""Shape -> timesteps of the inputs of operators; of production those of a batch of 16."""
SECONDS: Final = 0.5
"""What the rounds of a benchmark take together, about."""
ROUNDS: Final = (5, 50)
"""The fewest and the most of them."""
LONG: Final = 2.0
"""Seconds of a call from which on `FEW` rounds are enough."""
FEW: Final = 2


def configuration(shape: str, combiner: str, *overrides: str) -> Config:
    """That of the model with this combiner, `small` (the quickstart's sizes) or `production`."""
    path = SMALL if shape == "small" else PRODUCTION[combiner]
    return load_config(path, [f"model.combiner={combiner}", "training.batch_size=1", *overrides])


def measure(
    benchmark: BenchmarkFixture,
    run: Callable[..., Any],
    device: torch.device,
    *,
    setup: Callable[[], Any] | None = None,
    held: Callable[[], tuple[Tensor, ...]] = tuple,
    saves: bool = True,
) -> None:
    """Time `run` behind a warm-up, then look at its memory in one more call; all of it into the benchmark.

    Args:
        benchmark: the fixture.
        run: what is timed, until the device has done it. It may return a tensor with a graph, which is let go.
        device: where it runs.
        setup: makes the argument of `run` before each call, untimed.
        held: the tensors that are there anyway: they are not counted as saved for the backward pass.
        saves: whether `run` has a forward pass: only then something is saved.
    """

    def timed(*arguments: Any) -> None:
        run(*arguments)
        synchronize(device)

    def prepared() -> tuple[tuple[Any, ...], dict[str, Any]]:
        made = () if setup is None else (setup(),)
        synchronize(device)
        return made, {}

    def seconds() -> float:
        arguments = prepared()[0]
        started = time.perf_counter()
        timed(*arguments)
        return time.perf_counter() - started

    fewest, most = ROUNDS
    rounds = FEW
    if seconds() < LONG:  # the first call allocates and asks the processor what it can
        rounds = min(most, max(fewest, int(SECONDS / seconds())))
    benchmark.pedantic(timed, setup=prepared, rounds=rounds)

    arguments = prepared()[0]
    give_back_freed()
    memory = PeakMemory(device)
    with count_saved(held()) as saved:
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
