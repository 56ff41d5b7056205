"""Tests of the backend `triton` with interpreted kernels, against the reference and the losses of `torch`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.parity import require_parity
from pgat_fast import build_model, load_config
from pgat_fast.data.windows import example
from pgat_fast.errors import BackendError
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.training.run import train
from pgat_kernels import dispatch
from pgat_kernels.conditioning import error_bounds, relative_errors, rounding_spread
from pgat_kernels.instrumentation import record_compiled
from pgat_kernels.tuning_table import Case, Entry, Threshold

pytestmark = pytest.mark.usefixtures("large_tiles")


def operators_of(kernels: list[tuple[Any, Any]]) -> set[str]:
    """Return the operators to which recorded kernels belong."""
    return {re.sub(r"_(fwd|bwd)\w*_kernel$", "", kernel.__name__).strip("_") for kernel, _ in kernels}


OF_COMBINER = {"batched": {"edge_attention"}, "hierarchical": {"graph_attention", "edge_tokens"}}


@pytest.mark.parametrize("combiner", ["batched", pytest.param("hierarchical", marks=pytest.mark.slow)])
def test_forecast_and_gradients_equal_those_of_the_reference(combiner: str, tiny: tuple[str, ...]) -> None:
    """The golden cases show that the reference equals the existing model."""
    with record_compiled() as kernels:
        require_parity("triton", combiner)
    common = {"feed_forward", "projection", "edge_head", "gru_scan", "aspects"}
    assert operators_of(kernels) == OF_COMBINER[combiner] | common


def test_only_kernels_listed_as_faster_run(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run from the listed rows on, and for the projection of a block without those for its attention."""
    config = load_config("configs/quickstart.yaml", [*tiny, "model.combiner=batched", "model.fusion_layers=2"])
    rows = {"graph_attention": None, "projection_block": 1, "gru_bank": 1, "edge_head": 10**9, "feed_forward_block": 1}
    thresholds = {Case(name, 4, 512): Threshold(min_rows, "modelled") for name, min_rows in rows.items()}
    entry = Entry("a GPU", {}, thresholds)
    monkeypatch.setattr(dispatch, "applying", {"default": entry}.get)
    model = build_model(config, backend="triton").eval()
    assert isinstance(model, FastPGAT)
    inputs = list(example(config.model, 2)[:4])

    def results(inputs: list[Tensor], kernels: dispatch.Kernels) -> list[Tensor]:
        model.set_execution(replace(model.execution, kernels=kernels))
        forecast = model(*inputs)[0]
        return [forecast, *torch.autograd.grad(forecast.square().sum(), model.parameters(), materialize_grads=True)]

    def plain(inputs: list[Tensor]) -> list[Tensor]:
        return results(inputs, dispatch.Kernels.OFF)

    with record_compiled() as kernels:
        actual = results(inputs, dispatch.Kernels.LISTED)
    assert operators_of(kernels) == {"projection", "gru_scan", "feed_forward"}
    bounds = error_bounds(rounding_spread(plain, inputs), torch.float32)
    for error, bound in zip(relative_errors(actual, plain(inputs)), bounds, strict=True):
        assert error <= bound


@pytest.mark.slow
def test_training_losses_equal_those_of_the_torch_backend(
    tiny: tuple[str, ...], data_file: Path, tmp_path: Path
) -> None:
    """Run one training step on few days of real data, with dropout: both backends draw the same masks.

    The validation loss depends on the gradients of that step. Both losses differ by rounding, enlarged by row sums near
    zero: by 1e-5. Other masks move them by more than 1e-2, for three other seeds.
    """
    overrides = [
        *tiny, f"data.path={data_file}", f"run.output={tmp_path}", "training.epochs=1", "training.max_steps=1",
        "data.rows=40", "data.validation_length=2", "data.test_length=2", "training.batch_size=2", "run.plots=false",
    ]  # fmt: skip
    results = [
        train(load_config("configs/quickstart.yaml", [*overrides, f"run.backend={backend}"]), progress=False)[1]
        for backend in ("torch", "triton")
    ]
    for name in ("train_losses", "validation_losses"):
        expected, actual = (result[name] for result in results)
        assert actual == pytest.approx(expected, abs=1e-3)
    assert results[1]["backend"] == "triton"


def test_device_without_kernels_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgat_kernels.dispatch.interpreted", lambda: False)
    with pytest.raises(BackendError, match="Triton kernels run on GPUs, not on cpu"):
        build_model(load_config("configs/quickstart.yaml"), backend="triton")
