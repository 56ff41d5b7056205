"""Conversion of forecast targets to prices."""

from collections.abc import Callable

import numpy as np
import pytest

from pgat_fast.data.price_units import log_prices, to_prices
from pgat_fast.errors import ConfigError


def bars() -> np.ndarray:
    """Return two windows of five days of open, high, low, close."""
    return np.random.default_rng(2).uniform(90, 110, size=(2, 5, 4))


def returns_of(prices: np.ndarray, last_close: np.ndarray) -> np.ndarray:
    previous = np.concatenate([last_close[:, None], prices[:, :-1, 3]], axis=1)
    return np.log(prices / previous[..., None])


def test_returns_are_chained_from_last_close() -> None:
    last_close = np.array([100.0, 95.0])
    values = returns_of(bars(), last_close)
    # Five logs and one exponential: a few roundings.
    np.testing.assert_allclose(to_prices(values, "returns", last_close), bars(), rtol=1e-14)


def test_prices_without_last_close_are_relative() -> None:
    values = returns_of(bars(), np.array([100.0, 95.0]))
    relative = to_prices(values, "returns")
    np.testing.assert_allclose(relative * np.array([100.0, 95.0])[:, None, None], bars(), rtol=1e-14)
    np.testing.assert_allclose(relative[:, 0], np.exp(values[:, 0]), rtol=1e-15)


def test_levels_are_logs_of_prices() -> None:
    np.testing.assert_allclose(to_prices(np.log(bars()), "levels"), bars(), rtol=1e-14)


def test_any_leading_axes_are_accepted() -> None:
    values = returns_of(bars(), np.array([100.0, 95.0]))
    prices = to_prices(values[0], "returns", 100.0)
    assert np.array_equal(prices, to_prices(values, "returns", [100.0, 95.0])[0])
    assert to_prices(values[None], "returns").shape == (1, 2, 5, 4)


@pytest.mark.parametrize("convert", [to_prices, log_prices])
def test_invalid_kinds_and_shapes_raise(convert: Callable[[np.ndarray, str], np.ndarray]) -> None:
    with pytest.raises(ConfigError, match="'log': choose returns or levels"):
        convert(bars(), "log")
    for values in (bars()[..., :3], bars()[0, 0]):
        with pytest.raises(ValueError, match=r"expected \[..., P, 4\]"):
            convert(values, "returns")


@pytest.mark.parametrize("kind", ["returns", "levels"])
def test_log_prices_equal_logs_of_prices_with_last_close_one(kind: str) -> None:
    values = returns_of(bars(), np.array([100.0, 95.0]))
    np.testing.assert_allclose(log_prices(values, kind), np.log(to_prices(values, kind)), atol=1e-14)


def test_last_close_cancels_in_difference_of_log_prices() -> None:
    first, second = returns_of(bars(), np.array([100.0, 95.0])), returns_of(bars() + 1, np.array([100.0, 95.0]))
    log_ratios = np.log(to_prices(first, "returns", [7.0, 9.0]) / to_prices(second, "returns", [7.0, 9.0]))
    np.testing.assert_allclose(log_prices(first, "returns") - log_prices(second, "returns"), log_ratios, atol=1e-14)


@pytest.mark.parametrize("kind", ["returns", "levels"])
def test_log_prices_are_finite_where_prices_overflow(kind: str) -> None:
    values = np.full((3, 4), 1e5)
    with np.errstate(over="ignore"):
        assert (to_prices(values, kind) == np.inf).all()
    assert log_prices(values, kind)[2, 0] == (3e5 if kind == "returns" else 1e5)
