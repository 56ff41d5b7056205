"""The complete model with variants that cover its settings."""

import copy
import logging

import pytest
import torch
from torch import Tensor

from pgat_fast import build_model, load_config
from pgat_fast.errors import BackendError
from pgat_fast.model.forecast import Mixture
from tests.pgat_fast.model.variants import (
    FEW,
    FEW_FIRST,
    SMALL,
    VARIANTS,
    config_of,
    inputs_of,
    loss_of,
    model_of,
    tensors_of,
)


def close(first: Tensor, second: Tensor) -> bool:
    """Return whether tensors are equal up to rounding of float64, amplified by divisions by small sums (section 5)."""
    return torch.allclose(first, second, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_receives_a_gradient_in_training(variant: str) -> None:
    config, model = config_of(variant), model_of(variant).double().train()
    loss_of(config, model(*inputs_of(config, dtype=torch.float64))).backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert set(norms) == {name for name, _ in model.named_parameters()}
    # Smaller norms are rounding noise about zero.
    without_gradient = {name for name, norm in norms.items() if norm < 1e-12 * max(norms.values())}
    # A vector added to all keys changes no weight of a softmax, so its gradient is zero.
    assert without_gradient == ({"graph_builder.body_fusion.key.bias"} if config.model.use_celestial_graph else set())


@pytest.mark.parametrize("variant", FEW_FIRST)
def test_samples_of_a_batch_are_independent(variant: str) -> None:
    config, model = config_of(variant), model_of(variant).double().eval()
    inputs = inputs_of(config, batch=3, dtype=torch.float64)
    forecast, diagnostics = model(*inputs)
    for b in range(3):
        single_forecast, single_diagnostics = model(*(x[b : b + 1] for x in inputs))
        for batch_tensor, single_tensor in zip(
            tensors_of((forecast, {})), tensors_of((single_forecast, {})), strict=True
        ):
            assert close(batch_tensor[b : b + 1], single_tensor)
        for name, value in diagnostics.items():
            if value.dim() > 0:
                assert close(value[b : b + 1], single_diagnostics[name])


@pytest.mark.parametrize("variant", FEW)
def test_model_runs_on_the_meta_device(variant: str) -> None:
    """Check that no branch depends on data: on the meta device it raises, on an accelerator it would synchronise."""
    config = config_of(variant)
    with torch.device("meta"):
        model = build_model(config)
    result = model(*(x.to("meta") for x in inputs_of(config)))
    torch.stack([tensor.sum() for tensor in tensors_of(result)]).sum().backward()
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in model.parameters())


@pytest.mark.parametrize("variant", FEW_FIRST)
def test_evaluation_is_deterministic_and_silent(variant: str, capfd: pytest.CaptureFixture[str]) -> None:
    config, model = config_of(variant), model_of(variant).eval()
    state = torch.get_rng_state()
    first, second = (tensors_of(model(*inputs_of(config))) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    model.train()(*inputs_of(config))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("variant", FEW)
def test_forecast_is_the_same_with_and_without_gradients(variant: str) -> None:
    """Compare the two code paths of torch's attention in evaluation."""
    config, model = config_of(variant), model_of(variant).double().eval()
    inputs = inputs_of(config, dtype=torch.float64)
    expected = tensors_of(model(*inputs))
    with torch.no_grad():
        actual = tensors_of(model(*inputs))
    assert all(close(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("variant", FEW_FIRST)
def test_bfloat16_autocast_gives_finite_results(variant: str) -> None:
    config, model = config_of(variant), model_of(variant)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert all(torch.isfinite(tensor).all() for tensor in tensors_of(model.eval()(*inputs_of(config))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model.train()(*inputs_of(config))
    assert all(torch.isfinite(tensor).all() for tensor in (*tensors_of(result), *result[1].values()))
    loss_of(config, result).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_forecast_and_diagnostics_have_the_documented_shapes(variant: str) -> None:
    config = config_of(variant).model
    B, S, N, P, C, K = 3, config.seq_len, config.nodes, config.pred_len, config.c_out, config.mdn_components
    forecast, diagnostics = model_of(variant)(*inputs_of(config_of(variant), batch=B))
    if config.use_mixture_decoder:
        assert isinstance(forecast, Mixture)
        assert [tuple(part.shape) for part in forecast] == [(B, P, C, K), (B, P, C, K), (B, P, K)]
    else:
        assert forecast.shape == (B, P, C)
    shapes: dict[str, tuple[int, ...]] = {"adjacency": (B, S, N, N), "learned_adjacency": (B, S, N, N)}
    if config.use_celestial_graph:
        shapes |= {"phase_adjacency": (B, N, N), "dynamic_adjacency": (B, S, N, N)}
    if config.use_stochastic_learner:
        shapes["kl_divergence"] = ()
    assert {name: tuple(value.shape) for name, value in diagnostics.items()} == shapes


@pytest.mark.parametrize("variant", FEW)
def test_state_dict_contains_exactly_the_parameters(variant: str) -> None:
    model = model_of(variant)
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]
    copied = copy.deepcopy(model).eval()
    other = build_model(config_of(variant)).eval()
    other.load_state_dict(model.state_dict())
    inputs = inputs_of(config_of(variant))
    results = [tensors_of(m(*inputs)) for m in (model.eval(), copied, other)]
    for first, second, third in zip(*results, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


@pytest.mark.parametrize(("d_model", "n_heads", "width"), [(130, 8, 208), (208, 8, 208), (1, 2, 26), (27, 2, 52)])
def test_width_is_rounded_up_to_a_multiple_of_bodies_and_heads(
    d_model: int, n_heads: int, width: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        config = load_config(SMALL | {"d_model": d_model, "n_heads": n_heads})
    assert config.model.embed_dim == width
    assert (f"d_model {d_model} raised to {width}" in caplog.text) == (width != d_model)


def test_unknown_backend_lists_valid_ones() -> None:
    with pytest.raises(BackendError, match="'nonsense', not one of auto, reference"):
        build_model(SMALL, backend="nonsense")
