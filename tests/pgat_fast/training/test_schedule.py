"""Learning rates of all epochs, set before each begins."""

import math
from itertools import pairwise

import pytest
import torch

from pgat_fast.config.schema import TrainingConfig
from pgat_fast.training.schedule import learning_rate, plateaus


def rates(schedule: str, epochs: int, **more: float) -> list[float]:
    settings = TrainingConfig.model_validate(
        {"lr_schedule": schedule, "epochs": epochs, "learning_rate": 1.0, "min_lr": 0.1} | more
    )
    return [learning_rate(settings, epoch) for epoch in range(epochs)]


def test_warm_up_is_linear_and_reaches_peak_in_its_last_epoch() -> None:
    assert rates("warmup_cosine", 50, warmup_epochs=5)[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_cosine_starts_at_peak_and_falls_towards_minimum() -> None:
    cosine_rates = rates("warmup_cosine", 50, warmup_epochs=5)[5:]
    assert cosine_rates[0] == 1.0
    assert all(later < earlier for earlier, later in pairwise(cosine_rates))
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 22 / 45))
    assert cosine_rates[22] == pytest.approx(middle, rel=1e-12)
    assert 0.1 < cosine_rates[-1] < 0.102


def test_cosine_without_warm_up_equals_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    for rate in rates("cosine", 20):
        assert rate == pytest.approx(torch_schedule.get_last_lr()[0], rel=1e-9)  # torch uses a recursion
        optimizer.step()
        torch_schedule.step()


def test_first_epoch_has_peak_without_warm_up() -> None:
    assert rates("warmup_cosine", 3, warmup_epochs=0)[0] == 1.0


def test_warm_up_longer_than_run_does_not_divide_by_zero() -> None:
    assert rates("warmup_cosine", 2, warmup_epochs=5) == [0.2, 0.4]
    assert rates("warmup_cosine", 2, warmup_epochs=2) == [0.5, 1.0]


def test_constant_schedule_keeps_learning_rate() -> None:
    assert set(rates("constant", 9, learning_rate=0.3, warmup_epochs=2)) == {0.3}


def test_step_schedule_falls_by_gamma_down_to_minimum() -> None:
    assert rates("step", 9, lr_step_epochs=2, lr_gamma=0.5) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.1]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_schedule_equals_that_of_torch(patience: int) -> None:
    losses = [3.0, 2.0, 2.5, 2.0, 2.1, 1.9, 1.95, 1.96, 1.97, 1.98, 1.5]
    settings = TrainingConfig(lr_schedule="plateau", learning_rate=1.0, min_lr=0.0, lr_patience=patience, epochs=99)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torch_schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=settings.lr_gamma, patience=patience - 1, threshold=0.0, cooldown=0
    )
    for epoch, loss in enumerate(losses):
        torch_schedule.step(loss)  # torch counts the epochs to wait, `lr_patience` those after which the rate falls
        assert learning_rate(settings, epoch + 1, losses[: epoch + 1]) == torch_schedule.get_last_lr()[0]


def test_plateau_count_restarts_after_each_fall() -> None:
    assert plateaus([1.0, 1.0, 1.0, 1.0, 1.0], 2) == 2
    assert plateaus([], 2) == 0
