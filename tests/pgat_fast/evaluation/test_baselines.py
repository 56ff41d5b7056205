"""Naive forecasts of returns and levels."""

import numpy as np
import pytest

from pgat_fast.evaluation.baselines import BASELINES, naive_forecasts

LAST = np.array([2, 3])


def test_baselines_of_returns() -> None:
    values = np.array([[0.1, 0.3], [0.3, 0.1], [0.2, 0.5], [0.7, 0.4], [9.0, 9.0]])
    forecasts = naive_forecasts(values, ["log_Open", "log_Close"], LAST, 3, "returns", training_rows=range(2))
    assert set(forecasts) == set(BASELINES)
    assert all(forecast.shape == (2, 3, 2) for forecast in forecasts.values())
    assert (forecasts["last_value"][0] == [0.2, 0.5]).all()
    assert (forecasts["last_value"][1] == [0.7, 0.4]).all()
    assert (forecasts["zero_return"] == 0).all()
    assert forecasts["drift"] == pytest.approx(np.broadcast_to([0.2, 0.2], (2, 3, 2)))


def test_baselines_of_levels() -> None:
    values = np.array([[1.0, 1.5], [2.0, 2.0], [3.0, 4.5], [5.0, 6.0], [9.0, 9.0]])
    forecasts = naive_forecasts(values, ["log_Open", "log_Close"], LAST, 2, "levels", training_rows=range(3))
    assert (forecasts["last_value"][1] == [5.0, 6.0]).all()
    assert (forecasts["zero_return"][1] == [6.0, 6.0]).all(), "every price stays at the last close"
    # The mean daily changes of the training rows are 1 and 1.5.
    assert forecasts["drift"][1] == pytest.approx(np.array([[6.0, 7.5], [7.0, 9.0]]))


def test_zero_return_without_close_equals_last_value() -> None:
    values = np.arange(10.0).reshape(5, 2)
    forecasts = naive_forecasts(values, ["log_Open", "b"], LAST, 2, "levels", training_rows=range(3))
    assert (forecasts["zero_return"] == forecasts["last_value"]).all()


def test_targets_other_than_prices_have_no_zero_return() -> None:
    for kind in ("returns", "levels"):
        forecasts = naive_forecasts(np.ones((5, 1)), ["temperature"], LAST, 2, kind, training_rows=range(3))
        assert set(forecasts) == {"last_value", "drift"}


def test_forecasts_do_not_depend_on_rows_after_last_row() -> None:
    values = np.random.default_rng(0).normal(size=(8, 2))
    changed = values.copy()
    changed[4:] = 99.0
    for kind in ("returns", "levels"):
        before, after = (
            naive_forecasts(v, ["a", "log_Close"], LAST, 2, kind, training_rows=range(3)) for v in (values, changed)
        )
        for name in BASELINES:
            assert (before[name] == after[name]).all()


def test_unknown_kind_is_rejected() -> None:
    with pytest.raises(ValueError, match="'prices'"):
        naive_forecasts(np.zeros((5, 1)), ["a"], LAST, 1, "prices", training_rows=range(2))
