"""`compat.Model` as a replacement of the existing model in scripts."""

import copy
import io
import logging
import pickle
from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import build_model, load_config
from pgat_fast.compat import Model, from_original_layout
from pgat_fast.errors import ConfigError
from pgat_fast.model.forecast import Mixture
from pgat_fast.original_layout import original_shapes, sources
from tests.pgat_fast.model.variants import FEW, SMALL, VARIANTS, inputs_of, loss_of, tensors_of

SETTINGS: dict[str, Any] = SMALL | {"combiner": "batched"}


def model_of(settings: dict[str, Any] = SETTINGS, seed: int = 1) -> Model:
    torch.manual_seed(seed)
    return Model(settings)


def forecast(model: nn.Module) -> Tensor:
    """Return the forecast of a model with `SETTINGS` for fixed inputs."""
    dtype = next(model.parameters()).dtype
    result: Tensor = model(*inputs_of(load_config(SETTINGS), dtype=dtype))[0]
    return result


# --- parameters ---


@pytest.mark.parametrize("variant", FEW)
def test_parameters_have_original_layout(variant: str) -> None:
    model = model_of(VARIANTS[variant])
    expected = original_shapes(model.settings.model)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert list(model.state_dict()) == list(expected)
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]


@pytest.mark.parametrize("variant", FEW)
def test_forecast_equals_that_of_the_translated_checkpoint(variant: str) -> None:
    model = model_of(VARIANTS[variant]).double().eval()
    translated = build_model(model.settings).double().eval()
    translated.load_state_dict(from_original_layout(model.state_dict(), model.settings))
    inputs = inputs_of(model.settings, dtype=torch.float64)
    for actual, expected in zip(tensors_of(model(*inputs)), tensors_of(translated(*inputs)), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("variant", FEW)
def test_gradients_reach_exactly_the_used_parameters(variant: str) -> None:
    model = model_of(VARIANTS[variant]).double().train()
    loss_of(model.settings, model(*inputs_of(model.settings, dtype=torch.float64))).backward()
    our_model = build_model(model.settings)
    used_names = {source.name for source in sources(name for name, _ in our_model.named_parameters()).values()}
    received = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert received == used_names
    assert received < set(original_shapes(model.settings.model))


def test_initial_parameters_depend_on_the_seed() -> None:
    first, again, other = (model_of(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["projection.weight"], other["projection.weight"])


def test_only_parameters_that_are_not_frozen_change() -> None:
    model = model_of().train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("decoder" in name)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    forecast(model).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if "decoder" in name}


# --- settings ---


def test_namespace_and_dict_with_other_settings_give_the_same_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other_settings = {
        "model": "Celestial_Enhanced_PGAT",
        "learning_rate": "fast",
        "gpu": object(),
        "d_ff": 512,
        "loss": None,
    }
    with caplog.at_level(logging.INFO):
        models = [model_of(), model_of(SETTINGS | other_settings)]
    assert "do not define the model: d_ff, gpu, learning_rate, loss, model" in caplog.text
    torch.manual_seed(1)
    models.append(Model(Namespace(**SETTINGS, **other_settings)))
    first, second, third = (forecast(model.eval()) for model in models)
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_settings_of_the_script_are_not_changed() -> None:
    args = Namespace(**SETTINGS)
    Model(args)
    assert vars(args) == SETTINGS


def test_defaults_fit_existing_checkpoints() -> None:
    settings = model_of(SMALL).settings.model
    assert settings.compatibility == "original"
    assert (settings.phase_edges, settings.feature_map, settings.calendar_marks) == ("zero", "positional", "integer")
    assert settings.combiner == "hierarchical"


def test_dropout_is_exact_by_default() -> None:
    assert model_of().settings.run.exact_dropout
    assert not model_of(SETTINGS | {"exact_dropout": False}).settings.run.exact_dropout
    assert model_of(SETTINGS | {"combiner_chunk": 3}).settings.run.combiner_chunk == 3


def test_old_names_of_settings_are_read() -> None:
    old = {"use_efficient_covariate_interaction": False, "num_input_waves": 118, "target_wave_indices": [0, 1, 2, 3]}
    assert model_of(SETTINGS | old).settings.model.graph_processing == "attention"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_heads": "eight"}, "n_heads"),
        ({"combiner": "flat"}, "combiner"),
        ({"num_input_waves": 117}, "num_input_waves"),
        ({"label_len": 99}, "label_len"),
        ({"backend": "abacus"}, "abacus"),
    ],
)
def test_error_names_invalid_setting(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Model(SETTINGS | wrong)


# --- use in scripts ---


def test_training_and_evaluation_mode_apply_to_the_forecaster() -> None:
    parent = nn.ModuleDict({"model": model_of()})
    model = parent["model"]
    assert not torch.equal(forecast(model), forecast(model))
    parent.eval()
    expected = forecast(model)
    assert torch.equal(expected, forecast(model))
    parent.train()
    assert not torch.equal(forecast(model), expected)
    model.eval()
    assert torch.equal(forecast(model), expected)


@pytest.mark.parametrize("settings", [SETTINGS, SMALL | {"compatibility": "corrected"}])
def test_casting_converts_parameters_and_tables(settings: dict[str, Any]) -> None:
    model = model_of(settings).eval()
    inputs = inputs_of(model.settings, dtype=torch.float64)
    single = model(*(x.float() for x in inputs))[0]
    double = model.double()(*inputs)[0]
    assert double.dtype == torch.float64
    # Accuracy of float32 after the divisions of section 5; the two computations differ.
    assert torch.allclose(double.float(), single, rtol=1e-3, atol=1e-3)
    assert not torch.equal(double.float(), single)
    assert torch.equal(model.float()(*(x.float() for x in inputs))[0], single)
    assert torch.isfinite(model.to(torch.bfloat16)(*(x.bfloat16() for x in inputs))[0]).all()


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_independent(how: str) -> None:
    model = model_of()
    forecast(model).sum().backward()  # a training step must leave only state that can be copied
    if how == "deepcopy":
        copied_model = copy.deepcopy(model)
    elif how == "pickle":
        copied_model = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        copied_model = torch.load(buffer, weights_only=False)
    expected = forecast(model.eval())
    assert not torch.equal(forecast(copied_model), expected)  # still in training mode
    assert torch.equal(forecast(copied_model.eval()), expected)
    with torch.no_grad():
        for parameter in copied_model.parameters():
            parameter.zero_()
    assert torch.equal(forecast(model), expected)
    assert not torch.equal(forecast(copied_model), expected)


def test_two_models_share_no_tensors() -> None:
    first, second = model_of(), model_of()
    storages = {p.untyped_storage().data_ptr() for p in first.parameters()}
    assert not storages & {p.untyped_storage().data_ptr() for p in second.parameters()}
    assert len(storages) == len(list(first.parameters()))
    expected = forecast(second.eval())
    first.double().train()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(0.1)
    assert torch.equal(forecast(second), expected)


@pytest.mark.parametrize("assign", [False, True])
def test_state_loads_strictly_into_another_model(assign: bool) -> None:
    first, second = model_of(seed=1), model_of(seed=2)
    state = copy.deepcopy(first.state_dict())
    result = second.load_state_dict(state, assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.equal(forecast(first.eval()), forecast(second.eval()))


def test_state_with_missing_or_unknown_name_is_rejected() -> None:
    state = model_of().state_dict()
    state["unknown"] = state.pop("projection.bias")
    with pytest.raises(RuntimeError, match=r"projection\.bias(.|\n)*unknown"):
        model_of().load_state_dict(state)


def train(model: Model, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        loss = loss_of(model.settings, model(*inputs_of(model.settings, dtype=torch.float64)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("settings", [SETTINGS, VARIANTS["no bodies, everything"]])
def test_resumed_training_is_bitwise_equal(settings: dict[str, Any]) -> None:
    model = model_of(settings).double().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = train(model, optimizer, 10)
    assert min(losses[5:]) < losses[0]
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    second = model_of(settings, seed=7).double().train()
    second.load_state_dict(checkpoint["model"])
    second_optimizer = torch.optim.Adam(second.parameters(), lr=1.0)
    second_optimizer.load_state_dict(checkpoint["optimizer"])
    assert train(model, optimizer, 2) == train(second, second_optimizer, 2)
    state, resumed_state = model.state_dict(), second.state_dict()
    assert all(torch.equal(state[name], resumed_state[name]) for name in state)


def test_mixture_unpacks_to_three_tensors() -> None:
    model = model_of(SETTINGS | {"use_mixture_decoder": True}).eval()
    result = model(*inputs_of(model.settings))[0]
    assert isinstance(result, Mixture)
    means, log_stds, log_weights = result
    assert means.shape == log_stds.shape == (2, 2, 4, 3)
    assert log_weights.shape == (2, 2, 3)


def test_misspelt_setting_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model_of(SETTINGS | {"use_mixure_decoder": True, "num_workers": 2, "batch_size": 4})
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "pgat_fast.compat"]
    assert warning == "setting use_mixure_decoder is ignored: did you mean use_mixture_decoder?"


def test_setting_of_none_means_the_default() -> None:
    assert model_of(SETTINGS | {"mdn_components": None}).settings.model.mdn_components == 3


@pytest.mark.parametrize("args", [None, [1]])
def test_arguments_without_settings_are_rejected(args: object) -> None:
    with pytest.raises(ConfigError, match="namespace or a dict"):
        Model(args)
