"""Weights of earlier versions, in which the forecaster's submodule `graph_builder` was called `graph`."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgat_fast.compat import to_original_layout
from pgat_fast.training.checkpoint import Checkpoint, load_weights, save_checkpoint
from tests.pgat_fast.model.variants import FEW, config_of, model_of


def former(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the state dict as an earlier version wrote it; `prefix` is that of the forecaster's names."""
    return {name.replace(f"{prefix}graph_builder.", f"{prefix}graph."): tensor for name, tensor in state.items()}


def assert_equal(actual: nn.Module, expected: nn.Module) -> None:
    state = actual.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("variant", FEW)
def test_state_of_an_earlier_version_loads_strictly(variant: str) -> None:
    saved = model_of(variant)
    state = former(saved.state_dict())
    names = list(state)
    assert any(name.startswith("graph.") for name in names)
    loaded = model_of(variant, seed=1)
    loaded.load_state_dict(state)
    assert_equal(loaded, saved)
    assert list(state) == names  # the caller's dict is unchanged


def test_state_of_a_wrapper_loads() -> None:
    saved, loaded = (nn.ModuleDict({"graph": nn.Linear(2, 2), "net": model_of(seed=seed)}) for seed in (0, 1))
    state = former(saved.state_dict(), prefix="net.")
    loaded.load_state_dict(state)
    assert_equal(loaded, saved)
    averaged = torch.optim.swa_utils.AveragedModel(loaded["net"])
    averaged.load_state_dict(former(torch.optim.swa_utils.AveragedModel(saved["net"]).state_dict(), prefix="module."))
    assert_equal(averaged.module, saved["net"])


def test_state_with_both_names_is_refused() -> None:
    model = model_of()
    state = model.state_dict()
    name = next(name for name in state if name.startswith("graph_builder."))
    state[name.replace("graph_builder", "graph", 1)] = torch.zeros_like(state[name])
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "graph\.'):
        model.load_state_dict(state)


def test_missing_weights_are_reported_under_present_names() -> None:
    model = model_of()
    state = former(model.state_dict())
    del state["graph.phase.scaler"]
    assert model.load_state_dict(state, strict=False).missing_keys == ["graph_builder.phase.scaler"]


def test_state_of_an_earlier_version_is_exported() -> None:
    model = model_of()
    config = config_of(FEW[0])
    expected = to_original_layout(model.state_dict(), config)
    actual = to_original_layout(former(model.state_dict()), config)
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_checkpoint_of_an_earlier_version_loads(tmp_path: Path) -> None:
    saved = model_of()
    path = save_checkpoint(tmp_path, "step-00000003", Checkpoint(former(saved.state_dict())))
    loaded = model_of(seed=1)
    load_weights(loaded, path)
    assert_equal(loaded, saved)


def test_pickled_model_of_an_earlier_version_loads() -> None:
    saved = model_of()
    modules = dict(saved._modules)
    parameters = [name for name, _ in saved.named_parameters()]
    saved._modules = {"graph" if name == "graph_builder" else name: part for name, part in modules.items()}
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    loaded: Any = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    saved._modules = modules
    assert [name for name, _ in loaded.named_parameters()] == parameters
    assert_equal(loaded, saved)
