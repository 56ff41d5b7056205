"""Estimated durations of a run and of its compilation on this machine, used by `run.compile=auto`."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from pgat_fast.config import Config
from pgat_fast.model.compilation import COMPILE_SECONDS, regions_on
from pgat_fast.model.compile_cache import CompileCache
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.model.precision import Precision, products_in
from pgat_fast.utils.device import synchronize

Name = TypeVar("Name")

STEP_PER_FORWARD: Final = {"kept": 2.4, "recomputed": 3.0}
"""Seconds of a training step / seconds of its forward pass, on a CPU, if operators keep what the backward pass needs
and if they recompute it. Medians on two cores with AVX2: 2.24 and 2.98 (quickstart), 2.53 and 3.03 (production,
batched)."""

WARM_CACHE: Final = 0.15
"""Seconds of compilation with a warm cache / with an empty one: 2.6 / 21 with the quickstart, 5.2 / 24 with the batched
production model (`bench/results/amd-epyc-zen3-2-cores/*/step_*.json`)."""

MEASURED_STEPS: Final = 50
"""Smallest number of steps of a run for which forward passes are timed first: about a fiftieth of the run."""

LEAST_ROUNDS: Final = 3
"""Smallest number of rounds of steps taken in turns."""

SHORT_FORWARD: Final = 1.0
"""Seconds of a forward pass below which a third one is timed. The first one always takes longer: it imports parts of
torch, which takes seconds, and sets up libraries and memory."""


def measure_batch_seconds(
    model: FastPGAT,
    inputs: Sequence[Tensor],
    precision: Precision,
    device: torch.device,
    check_stop: Callable[[], None] = lambda: None,
) -> float:
    """Return the approximate seconds of an eager forward and backward pass of a batch, from its forward pass.

    torch's random number generator is restored.

    Args:
        model: in training mode, not compiled.
        inputs: inputs of the model for a whole batch.
        precision: precision of the products.
        device: device of the model, a CPU.
        check_stop: raises if the run was asked to stop.
    """
    seconds: list[float] = []
    with torch.random.fork_rng(devices=[]):
        while len(seconds) < 2 or (seconds[-1] < SHORT_FORWARD and len(seconds) < 3):
            check_stop()
            started = time.perf_counter()
            with torch.no_grad(), products_in(precision, device):
                model(*inputs)
            seconds.append(time.perf_counter() - started)
    return min(seconds) * STEP_PER_FORWARD["kept" if model.execution.keep > 0 else "recomputed"]


def seconds_in_turns(
    steps: Mapping[Name, Callable[[], None]],
    seconds: float,
    device: torch.device,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[Name, list[float]]:
    """Return the seconds of each of `steps`, taken in turns, so that a disturbance of the machine favours none.

    Args:
        steps: name -> function that takes a step on `device`; each has been called before.
        seconds: after which no other round begins; at least `LEAST_ROUNDS` are taken.
        device: of the steps.
        check_stop: raises if the run was asked to stop.
    """
    taken: dict[Name, list[float]] = {name: [] for name in steps}
    number, deadline = 0, time.perf_counter() + seconds
    while steps and (number < LEAST_ROUNDS or time.perf_counter() < deadline):
        number += 1
        for name in list(steps)[:: 1 if number % 2 else -1]:
            check_stop()
            synchronize(device)
            began = time.perf_counter()
            steps[name]()
            synchronize(device)
            taken[name].append(time.perf_counter() - began)
    return taken


def expected_compile_seconds(cache: CompileCache | None, program: str, device: torch.device) -> float:
    """Return the approximate seconds of compilation: those of the last time if `program` is in the cache.

    Otherwise the longest first compilation of a program of the same kind on this machine, or `COMPILE_SECONDS` if there
    is none.
    """
    recorded_seconds = {} if cache is None else cache.seconds()
    if program in recorded_seconds:
        first, last = recorded_seconds[program]
        return last if last < first else WARM_CACHE * first
    firsts = [first for name, (first, _) in recorded_seconds.items() if _kind(name) == _kind(program)]
    return max(firsts, default=COMPILE_SECONDS[device.type])


def _kind(program: str) -> str:
    """Return device and compiled regions, which decide whether compilation takes seconds or minutes."""
    return program.rpartition("-")[0]


def program_key(config: Config, device: torch.device) -> str:
    """Return `DEVICE-REGIONS-HASH`, a key of everything that the compiled code of a run depends on."""
    from pgat_fast import __version__

    run = config.run.model_dump(mode="json")
    parts: dict[str, Any] = {
        "version": __version__,
        "model": config.model.model_dump(mode="json"),
        "batch": config.training.batch_size,
        "run": {name: run[name] for name in ("backend", "precision", "combiner_chunk", "exact_dropout")},
        "threads": torch.get_num_threads(),
    }
    regions = regions_on(device, whole=run["compile"] == "whole")
    return f"{device.type}-{regions}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]}"
