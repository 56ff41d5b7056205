"""Loss and point forecast of a mixture."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from pgat_fast.model.forecast import Mixture, forecast_loss, mixture_nll, point_forecast
from tests.pgat_fast.model.by_hand import normal


def mixture(batch: int = 3, days: int = 4, targets: int = 2, components: int = 5) -> Mixture:
    shape = (batch, days, targets, components)
    return Mixture(normal(*shape), normal(*shape, seed=2), normal(batch, days, components, seed=3))


def joint(m: Mixture) -> Distribution:
    """Return the distribution of all targets of a day, with one component a day."""
    parts = Normal(m.means.transpose(2, 3), m.log_stds.transpose(2, 3).exp())  # [B, P, K, c_out]
    return MixtureSameFamily(Categorical(logits=m.log_weights), Independent(parts, 1))


def of_target(m: Mixture, target: int) -> Distribution:
    """Return the distribution of one target, with its own component."""
    parts = Normal(m.means[:, :, target], m.log_stds[:, :, target].exp())
    return MixtureSameFamily(Categorical(logits=m.log_weights), parts)


def test_joint_loss_is_the_mean_negative_log_density_of_a_day() -> None:
    m, y = mixture(), normal(3, 4, 2, seed=4)
    assert torch.allclose(mixture_nll(m, y, "joint"), -joint(m).log_prob(y).mean(), rtol=1e-12)  # rounding


def test_independent_loss_is_summed_over_the_targets_of_a_day() -> None:
    m, y = mixture(), normal(3, 4, 2, seed=4)
    total: Tensor = sum((of_target(m, c).log_prob(y[:, :, c]) for c in range(2)), torch.zeros(3, 4))
    assert torch.allclose(mixture_nll(m, y, "independent"), -total.mean(), rtol=1e-12)  # rounding of float64


@pytest.mark.parametrize("mode", ["joint", "independent"])
@pytest.mark.parametrize("log_std", [-10.0, 2.0])
def test_loss_and_gradients_are_finite_at_the_limits(mode: str, log_std: float) -> None:
    means = torch.zeros(2, 3, 2, 3, requires_grad=True)
    log_stds = torch.full((2, 3, 2, 3), log_std, requires_grad=True)
    log_weights = torch.tensor([100.0, 0.0, -100.0]).repeat(2, 3, 1).requires_grad_()
    loss = mixture_nll(Mixture(means, log_stds, log_weights), torch.full((2, 3, 2), 10.0), mode)
    loss.backward()
    assert torch.isfinite(loss)
    for tensor in (means, log_stds, log_weights):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    z = 10 * math.exp(-log_std)
    expected = 2 * (0.5 * z**2 + log_std + 0.5 * math.log(2 * math.pi))
    assert loss.item() == pytest.approx(expected, rel=1e-5)  # float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixture_loss_of_half_precision_is_float32(dtype: torch.dtype) -> None:
    halves = Mixture(*(part.to(dtype) for part in mixture()))
    singles = Mixture(*(part.float() for part in halves))
    y = normal(3, 4, 2).to(dtype)
    loss = mixture_nll(halves, y, "joint")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, mixture_nll(singles, y.float(), "joint"))


def test_unknown_mode_is_rejected() -> None:
    with pytest.raises(ValueError, match="'both', not 'joint' or 'independent'"):
        mixture_nll(mixture(), normal(3, 4, 2), "both")


def test_point_forecast_is_the_mean_of_the_mixture() -> None:
    m = mixture()
    actual = point_forecast(m)
    assert actual.shape == (3, 4, 2)
    assert torch.allclose(actual, joint(m).mean, rtol=0, atol=1e-12)  # rounding of float64
    for target in range(2):
        assert torch.allclose(actual[:, :, target], of_target(m, target).mean, rtol=0, atol=1e-12)


def test_point_forecast_of_a_tensor_is_the_tensor() -> None:
    numbers = normal(3, 4, 2)
    assert point_forecast(numbers) is numbers


def test_loss_of_a_point_forecast_is_mean_squared_error() -> None:
    loss = forecast_loss(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]]), "joint")
    assert loss.item() == 2.5


def test_loss_of_half_precision_point_forecast_is_float32() -> None:
    loss = forecast_loss(torch.full((1, 1, 1), 1.0, dtype=torch.bfloat16), torch.full((1, 1, 1), 1.001), "joint")
    assert loss.dtype == torch.float32
    assert abs(loss.item() - 1e-6) < 1e-9  # in bfloat16 the difference would be 0


def test_loss_of_a_mixture_is_its_likelihood() -> None:
    mixture = Mixture(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4))
    target = torch.randn(1, 2, 3)
    assert forecast_loss(mixture, target, "joint") == mixture_nll(mixture, target, "joint")
