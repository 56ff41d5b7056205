"""Training loss: forecast loss plus weighted divergence."""

import torch

from pgat_fast.training.loss import training_loss


def test_divergence_is_added_with_its_weight_if_present() -> None:
    forecast, target = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    divergence = {"kl_divergence": torch.tensor(8.0)}
    assert training_loss(forecast, divergence, target, "joint", 0.25).item() == 3.0
    assert training_loss(forecast, {}, target, "joint", 0.25).item() == 1.0
