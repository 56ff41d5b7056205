"""The learning rate of every epoch, set before it begins."""

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


def test_warm_up_is_linear_and_reaches_the_peak_in_its_last_epoch() -> None:
    assert rates("warmup_cosine", 50, warmup_epochs=5)[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_the_cosine_begins_at_the_peak_and_falls_towards_the_minimum() -> None:
    after = rates("warmup_cosine", 50, warmup_epochs=5)[5:]
    assert after[0] == 1.0
    assert all(later < earlier for earlier, later in pairwise(after))
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 22 / 45))
    assert after[22] == pytest.approx(middle, rel=1e-12)
    assert 0.1 < after[-1] < 0.102


def test_cosine_alone_is_the_one_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    for rate in rates("cosine", 20):
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)  # theirs is a recursion
        optimizer.step()
        theirs.step()


def test_without_warm_up_the_first_epoch_has_the_peak() -> None:
    assert rates("warmup_cosine", 3, warmup_epochs=0)[0] == 1.0


def test_warm_up_longer_than_the_run_never_divides_by_zero() -> None:
    assert rates("warmup_cosine", 2, warmup_epochs=5) == [0.2, 0.4]
    assert rates("warmup_cosine", 2, warmup_epochs=2) == [0.5, 1.0]


def test_constant_stays() -> None:
    assert set(rates("constant", 9, learning_rate=0.3, warmup_epochs=2)) == {0.3}


def test_step_falls_by_gamma_every_so_many_epochs_down_to_the_minimum() -> None:
    assert rates("step", 9, lr_step_epochs=2, lr_gamma=0.5) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.1]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_falls_when_the_validation_loss_does_not(patience: int) -> None:
    losses = [3.0, 2.0, 2.5, 2.0, 2.1, 1.9, 1.95, 1.96, 1.97, 1.98, 1.5]
    settings = TrainingConfig(lr_schedule="plateau", learning_rate=1.0, min_lr=0.0, lr_patience=patience, epochs=99)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=settings.lr_gamma, patience=patience - 1, threshold=0.0, cooldown=0
    )
    for epoch, loss in enumerate(losses):
        theirs.step(loss)  # torch counts the epochs that it lets pass, we those after which it acts
        assert learning_rate(settings, epoch + 1, losses[: epoch + 1]) == theirs.get_last_lr()[0]


def test_a_plateau_is_counted_again_after_each_fall() -> None:
    assert plateaus([1.0, 1.0, 1.0, 1.0, 1.0], 2) == 2
    assert plateaus([], 2) == 0
