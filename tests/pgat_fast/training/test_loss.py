"""The loss: squared error or likelihood, plus the weighted divergence."""

import torch

from pgat_fast.model.forecast import Mixture, mixture_nll
from pgat_fast.training.loss import forecast_loss, training_loss


def test_a_point_forecast_is_judged_by_its_mean_squared_error() -> None:
    loss = forecast_loss(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]]), "joint")
    assert loss.item() == 2.5


def test_a_forecast_of_half_precision_is_judged_in_float32() -> None:
    loss = forecast_loss(torch.full((1, 1, 1), 1.0, dtype=torch.bfloat16), torch.full((1, 1, 1), 1.001), "joint")
    assert loss.dtype == torch.float32
    assert abs(loss.item() - 1e-6) < 1e-9  # in bfloat16 the difference would be 0


def test_a_mixture_is_judged_by_its_likelihood() -> None:
    mixture = Mixture(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 4))
    target = torch.randn(1, 2, 3)
    assert forecast_loss(mixture, target, "joint") == mixture_nll(mixture, target, "joint")


def test_the_divergence_counts_with_its_weight_where_there_is_one() -> None:
    forecast, target = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    divergence = {"kl_divergence": torch.tensor(8.0)}
    assert training_loss(forecast, divergence, target, "joint", 0.25).item() == 3.0
    assert training_loss(forecast, {}, target, "joint", 0.25).item() == 1.0
