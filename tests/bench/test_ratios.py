"""Ratios with intervals: right on average, as wide as the truth, silent where nothing can be said."""

import math

import numpy as np
import pytest

from bench.ratios import HOURS, NOISE, Ratio, ratio


def steps(generator: np.random.Generator, mean: float, drift: np.ndarray, process: float) -> list[list[float]]:
    """Seconds of 4 processes: what the machine does meets all, each has a speed of its own, each step some noise."""
    own = np.exp(generator.normal(0, process, (4, 1)))
    return list((mean * own * drift * np.exp(generator.normal(0, 0.01, drift.shape))).tolist())


def test_of_100_other_runs_about_95_lie_within_the_interval() -> None:
    generator = np.random.default_rng(0)
    again = truth = 0
    for _ in range(400):
        found, other = (one_run(generator) for _ in range(2))
        again += found.low <= other.estimate <= found.high
        truth += found.low <= 2 <= found.high
    assert again / 400 >= 0.93
    assert truth / 400 >= 0.95


def one_run(generator: np.random.Generator) -> Ratio:
    """Of something that is twice as fast."""
    drift = np.exp(generator.normal(0, 0.3, (4, 10)))  # a machine that others use
    return ratio(steps(generator, 2.0, drift, 0.02), steps(generator, 1.0, drift, 0.02))


def test_what_meets_both_alike_does_not_matter() -> None:
    found = ratio([[2.0, 20.0, 3.0], [4.0, 2.0, 2.0]], [[1.0, 10.0, 1.5], [2.0, 1.0, 1.0]])
    assert found.estimate == pytest.approx(2)
    assert (found.low, found.high) == (pytest.approx(2 * math.exp(-HOURS)), pytest.approx(2 * math.exp(HOURS)))
    assert str(found) == "2.00 (1.94 to 2.06)"
    assert not found.noisy


def test_noise_is_called_noise() -> None:
    found = ratio([[1.0], [2.0]], [[1.0], [1.0]])
    assert found.noisy
    assert str(found).startswith("too noisy for a number: ")
    assert found.record()["noisy"]
    assert not ratio([[1.0], [1.0 + NOISE / 100]], [[1.0], [1.0]]).noisy


def test_the_interval_is_students_prediction_of_the_logarithms() -> None:
    found = ratio([[math.e], [math.e**3]], [[1.0], [1.0]])
    assert found.estimate == pytest.approx(math.e**2)
    assert math.log(found.high / found.estimate) == pytest.approx(math.hypot(12.706 * math.sqrt(2), HOURS))


@pytest.mark.parametrize(("first", "other"), [([[1.0]], [[1.0]]), ([[1.0], [1.0]], [[1.0]])])
def test_of_one_process_nothing_is_said(first: list[list[float]], other: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="two of each at least"):
        ratio(first, other)
    with pytest.raises(ValueError, match="zip"):
        ratio([[1.0], [1.0]], [[1.0, 2.0], [1.0]])
