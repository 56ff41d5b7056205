"""The learning rate of every epoch, set before it begins."""

import math
from itertools import pairwise

import pytest

from pgat_fast.training.schedule import learning_rate


def rates(epochs: int, warmup_epochs: int) -> list[float]:
    return [
        learning_rate("warmup_cosine", e, peak=1.0, minimum=0.1, warmup_epochs=warmup_epochs, epochs=epochs)
        for e in range(epochs)
    ]


def test_warm_up_is_linear_and_reaches_the_peak_in_its_last_epoch() -> None:
    assert rates(50, 5)[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_the_cosine_begins_at_the_peak_and_falls_towards_the_minimum() -> None:
    after = rates(50, 5)[5:]
    assert after[0] == 1.0
    assert all(later < earlier for earlier, later in pairwise(after))
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 22 / 45))
    assert after[22] == pytest.approx(middle, rel=1e-12)
    assert 0.1 < after[-1] < 0.102


def test_without_warm_up_the_first_epoch_has_the_peak() -> None:
    assert rates(3, 0)[0] == 1.0


def test_warm_up_longer_than_the_run_never_divides_by_zero() -> None:
    assert rates(2, 5) == [0.2, 0.4]
    assert rates(2, 2) == [0.5, 1.0]


def test_constant_stays() -> None:
    found = {learning_rate("constant", e, peak=0.3, minimum=0.1, warmup_epochs=2, epochs=9) for e in range(9)}
    assert found == {0.3}


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'step'"):
        learning_rate("step", 0, peak=1, minimum=0, warmup_epochs=0, epochs=1)
