"""Wall-clock time of calls on a device. Needs torch alone: `bench.gpu` runs where nothing else is installed."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch

from pgat_fast.utils.device import synchronize

Quartiles = dict[str, float]
"""Keys `quartile_1`, `median`, `quartile_3`."""
LEAST_RUNS: Final = 3


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of at least one value."""
    cut_points = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return dict(zip(("quartile_1", "median", "quartile_3"), cut_points, strict=True))


def seconds_of(run: Callable[[], object], times: int, device: torch.device) -> list[float]:
    """Return the seconds of each of `times` calls of `run`, until `device` has finished its work."""
    seconds = []
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def shortest(product: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Return the shortest time of `product` in seconds, repeated for `seconds`, but at least `LEAST_RUNS` times."""
    product()
    best, runs, deadline = float("inf"), 0, time.perf_counter() + seconds
    while runs < LEAST_RUNS or time.perf_counter() < deadline:
        synchronize(device)
        started = time.perf_counter()
        product()
        synchronize(device)
        best, runs = min(best, time.perf_counter() - started), runs + 1
    return best
