"""Tests of the backend `triton` with interpreted kernels, against the existing model and the losses of `torch`."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from pgat_fast import build_model, load_config
from pgat_fast.compat import from_original_layout
from pgat_fast.errors import BackendError
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.training.run import train
from pgat_kernels import dispatch
from pgat_kernels.triton.launch import running
from pgat_kernels.tuning_table import Case, Measured
from tests import golden
from tests.pgat_fast.test_golden import as_list

pytestmark = [pytest.mark.usefixtures("large_tiles"), pytest.mark.timeout(1200)]


def launched_for(case: golden.Case, model: nn.Module) -> set[str]:
    """Return the operators whose kernels ran, and check outputs and gradients against the existing model."""
    state = case.state(torch.float32)
    with running() as launches:
        parameters = from_original_layout(state, case.config)
        outputs = as_list(functional_call(model, parameters, case.inputs(torch.float32))[0])
        case.check_outputs(outputs)
        case.probed(outputs).backward()
    case.check_gradients({key: tensor.grad for key, tensor in state.items()})
    return {re.sub(r"_(fwd|bwd)\w*_kernel$", "", kernel.__name__).strip("_") for kernel, _ in launches}


@pytest.mark.slow  # minutes in the interpreter
@pytest.mark.parametrize("name", ["batched_small", "hierarchical_small"])
def test_outputs_and_gradients_equal_the_existing_model(name: str) -> None:
    case = golden.load(name)
    run = case.config.run.model_copy(update={"combiner_chunk": 1000})  # few launches
    model = build_model(case.config.model_copy(update={"run": run}), backend="triton").eval()
    assert isinstance(model, FastPGAT)
    extra = {"batched_small": {"edge_attention"}, "hierarchical_small": {"graph_attention", "edge_tokens"}}
    assert launched_for(case, model) == extra[name] | {"feed_forward", "projection", "edge_head", "gru_scan", "aspects"}


@pytest.mark.slow  # half a minute in the interpreter
def test_only_kernels_measured_to_be_faster_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels run for the projection without attention, not for the first layer, and from the measured rows on."""
    case = golden.load("batched_small")
    rows = {"graph_attention": None, "projection_block": 1, "gru_bank": 1, "edge_head": 10**9, "feed_forward_block": 1}
    entry = Measured("a GPU", {}, {Case(name, 4, 512): min_rows for name, min_rows in rows.items()})
    monkeypatch.setattr(dispatch, "measured", {"default": entry}.get)
    model = build_model(case.config, backend="triton").eval()
    assert isinstance(model, FastPGAT)
    model.set_execution(replace(model.execution, combiner_chunk=1000, kernels=dispatch.Kernels.MEASURED))
    assert launched_for(case, model) == {"projection", "gru_scan", "feed_forward"}


@pytest.mark.slow  # a whole interpreted training step
def test_quickstart_losses_equal_those_of_the_torch_backend(data_file: Path, tmp_path: Path) -> None:
    """Run one training step on few days of real data, with dropout: both backends draw the same masks.

    The validation loss depends on the gradients of that step.
    """
    data_overrides = [
        "model.seq_len=4", "model.label_len=2", "model.pred_len=2",
        "data.rows=40", "data.validation_length=2", "data.test_length=2", "training.batch_size=2",
    ]  # fmt: skip
    steps = ["training.epochs=1", "training.max_steps=1", "run.combiner_chunk=1000", "run.plots=false"]
    results = []
    for backend in ("torch", "triton"):
        run_overrides = [f"data.path={data_file}", f"run.output={tmp_path}", f"run.backend={backend}", "run.device=cpu"]
        results.append(
            train(load_config("configs/quickstart.yaml", [*data_overrides, *steps, *run_overrides]), progress=False)[1]
        )
    for name in ("train_losses", "validation_losses"):
        expected, actual = (result[name] for result in results)
        assert actual == pytest.approx(expected, abs=1e-5)
    assert results[1]["backend"] == "triton"


def test_device_without_kernels_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    case = golden.load("batched_small")
    monkeypatch.setattr("pgat_kernels.dispatch.interpreted", lambda: False)
    with pytest.raises(BackendError, match="Triton kernels run on GPUs, not on cpu"):
        build_model(case.config, backend="triton")
