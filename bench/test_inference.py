"""Forecasts: latency of one window, and throughput in windows per second at batch 256."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.backend_spec import build, parse_spec
from bench.parity import require_parity
from bench.suite import configuration, measure, median_seconds
from pgat_fast.data.windows import example
from pgat_fast.model.precision import products_in, resolve_precision


@pytest.mark.parametrize("windows", [1, 256], ids=["latency", "throughput"])
def test_forecast(
    benchmark: BenchmarkFixture,
    combiner: str,
    backend: str,
    precision: str,
    windows: int,
    seq_len: int,
    shape: str,
    device: torch.device,
) -> None:
    spec = parse_spec(backend)
    if shape == "small" and windows > 1 and (combiner, spec.backend) == ("hierarchical", "reference"):
        pytest.skip("takes two minutes: with --shape production only")
    require_parity(spec.backend, combiner)
    config = configuration(shape, combiner, f"model.seq_len={seq_len}", *spec.overrides())
    model = build(config, spec).to(device).eval()
    resolved = resolve_precision(precision, device)
    inputs = [x.to(device) for x in example(config.model, windows)[:4]]

    def forecast() -> None:
        with torch.inference_mode(), products_in(resolved, device):
            model(*inputs)

    measure(benchmark, forecast, device, saves=False)
    benchmark.extra_info["windows_per_second"] = windows / median_seconds(benchmark)
