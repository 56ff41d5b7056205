"""Tests of `bench.ratios`: coverage of the intervals, pairing of steps, and ratios too noisy to report."""

import math

import numpy as np
import pytest

from bench.ratios import HOURS, NOISE, Ratio, ratio


def steps(generator: np.random.Generator, mean: float, drift: np.ndarray, process: float) -> list[list[float]]:
    """Return seconds of 4 processes: `drift` affects all, each has a speed of its own, each step some noise."""
    speeds = np.exp(generator.normal(0, process, (4, 1)))
    return list((mean * speeds * drift * np.exp(generator.normal(0, 0.01, drift.shape))).tolist())


def test_interval_covers_about_95_of_100_other_runs() -> None:
    generator = np.random.default_rng(0)
    covers_other = covers_truth = 0
    for _ in range(400):
        interval, other = (one_run(generator) for _ in range(2))
        covers_other += interval.low <= other.estimate <= interval.high
        covers_truth += interval.low <= 2 <= interval.high
    assert covers_other / 400 >= 0.93
    assert covers_truth / 400 >= 0.95


def one_run(generator: np.random.Generator) -> Ratio:
    """Return the ratio of a run in which the second is twice as fast."""
    drift = np.exp(generator.normal(0, 0.3, (4, 10)))  # a shared machine
    return ratio(steps(generator, 2.0, drift, 0.02), steps(generator, 1.0, drift, 0.02))


def test_disturbance_of_both_cancels() -> None:
    result = ratio([[2.0, 20.0, 3.0], [4.0, 2.0, 2.0]], [[1.0, 10.0, 1.5], [2.0, 1.0, 1.0]])
    assert result.estimate == pytest.approx(2)
    assert (result.low, result.high) == (pytest.approx(2 * math.exp(-HOURS)), pytest.approx(2 * math.exp(HOURS)))
    assert str(result) == "2.00 (1.94 to 2.06)"
    assert not result.noisy


def test_noisy_ratio_is_reported_as_noisy() -> None:
    result = ratio([[1.0], [2.0]], [[1.0], [1.0]])
    assert result.noisy
    assert str(result).startswith("too noisy for a number: ")
    assert result.record()["noisy"]
    assert not ratio([[1.0], [1.0 + NOISE / 100]], [[1.0], [1.0]]).noisy


def test_interval_is_student_prediction_interval_of_logarithms() -> None:
    result = ratio([[math.e], [math.e**3]], [[1.0], [1.0]])
    assert result.estimate == pytest.approx(math.e**2)
    assert math.log(result.high / result.estimate) == pytest.approx(math.hypot(12.706 * math.sqrt(2), HOURS))


@pytest.mark.parametrize(("first", "other"), [([[1.0]], [[1.0]]), ([[1.0], [1.0]], [[1.0]])])
def test_too_few_or_unequal_processes_raise(first: list[list[float]], other: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="two of each at least"):
        ratio(first, other)
    with pytest.raises(ValueError, match="zip"):
        ratio([[1.0], [1.0]], [[1.0, 2.0], [1.0]])
