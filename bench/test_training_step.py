"""Whole training steps (forward, backward, clipping, Adam), and the time of an epoch extrapolated from them.

All run in one process, to find out what has changed; `pgat-fast bench` compares backends, each in processes of its own.
"""

import math

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.backend_spec import build, compile_module, parse_spec
from bench.gpu.cost_model import EPOCH_WINDOWS
from bench.measure import state_of
from bench.parity import require_parity
from bench.step import optimizer_step
from bench.suite import configuration, measure, median_seconds
from pgat_fast.data.windows import Batch, example
from pgat_fast.model.precision import resolve_precision


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_step(
    benchmark: BenchmarkFixture,
    combiner: str,
    backend: str,
    precision: str,
    compiled: bool,
    batch: int,
    seq_len: int,
    shape: str,
    device: torch.device,
) -> None:
    spec = parse_spec(backend)
    if compiled and shape == "small" and (precision, combiner, spec.backend) != ("highest", "batched", "torch"):
        pytest.skip("takes two minutes: with --shape production only; pgat-fast bench compare --compiled has more")
    require_parity(spec.backend, combiner)
    config = configuration(shape, combiner, f"model.seq_len={seq_len}", *spec.overrides())
    model = build(config, spec, compiled).to(device)
    if compiled:
        compile_module(model, spec, device)
    graphs = compiled and device.type == "cuda" and spec.backend != "reference"
    step = optimizer_step(model, config, resolve_precision(precision, device), device, graphs=graphs)
    inputs = Batch(*(tensor.to(device) for tensor in example(config.model, batch)))

    def take_step() -> None:
        step.apply(step.accumulate([lambda: inputs]), 1)

    measure(benchmark, take_step, device, ignored=lambda: (*state_of(model), *inputs))
    assert not step.flags.raised(wait=True), "a step was not finite and thus left out: the timings mean nothing"
    steps, median = math.ceil(EPOCH_WINDOWS / batch), median_seconds(benchmark)
    benchmark.extra_info["epoch_seconds_extrapolated"] = steps * median
    benchmark.extra_info["epoch_steps"] = steps
