"""Intervals of point forecasts and of mixtures, in scaled units and in prices, and their JSON form."""

import json
import warnings
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from pgat_fast.data.columns import TARGETS
from pgat_fast.data.price_units import to_prices
from pgat_fast.data.scaling import Scaler
from pgat_fast.errors import DataError
from pgat_fast.evaluation.intervals import (
    LEVELS,
    Intervals,
    calibrate,
    interval_report,
    price_bounds,
    scaled_bounds,
    simulate_log_prices,
)
from pgat_fast.evaluation.probabilistic import interval_coverage
from pgat_fast.evaluation.split_forecasts import MixtureArrays, SplitForecast

SCALER = Scaler(np.array([0.001, 0.004, -0.004, 0.0005]), np.array([0.012, 0.008, 0.009, 0.01]), TARGETS)
KINDS = ("returns", "levels")
Z = {level: NormalDist().inv_cdf(0.5 + level / 2) for level in LEVELS}


def split(windows: int = 41, days: int = 3, seed: int = 0) -> SplitForecast:
    """Return point forecasts whose errors grow from day to day.

    Values are multiples of 2 ** -30, so that their sums are exact.
    """
    rng = np.random.default_rng(seed)
    truth, error = np.round(rng.normal(size=(2, windows, days, 4)) * 2**30) / 2**30
    forecast = truth + error * np.arange(1, days + 1)[:, None]
    return SplitForecast(forecast, truth, 1.0, None, np.zeros((2, 2)))


def with_mixture(mixture: MixtureArrays) -> SplitForecast:
    forecast = (mixture.means * mixture.weights[:, :, None]).sum(axis=-1)
    return SplitForecast(forecast, np.zeros_like(forecast), 1.0, mixture, np.zeros((2, 2)))


def normals(windows: int = 3, days: int = 2) -> MixtureArrays:
    """Return mixtures of one component."""
    rng = np.random.default_rng(2)
    shape = windows, days, 4, 1
    return MixtureArrays(rng.normal(size=shape), rng.uniform(0.2, 2, size=shape), np.ones((windows, days, 1)))


def calibrated(result: SplitForecast, kind: str | None = "returns", mode: str = "independent") -> Intervals:
    return calibrate(result, SCALER, kind=kind, mixture_mode=mode, seed=7)


def mixture_intervals(mode: str = "independent", seed: int = 7) -> Intervals:
    return Intervals("mixture", LEVELS, 0, mixture_mode=mode, seed=seed)


# --- point forecasts --------------------------------------------------------------------------------------------------


def test_coverage_of_calibration_windows_equals_rank() -> None:
    result = split()
    intervals = calibrated(result)
    assert (intervals.method, intervals.windows) == ("conformal", 41)
    report = interval_report(intervals, (scaled_bounds(intervals, result.forecast, None), result.truth), None, TARGETS)
    for level, rank in zip(report["scaled"], (21, 34, 40), strict=True):  # ceil(42 * level)
        coverage = level["coverage"]
        assert [coverage["overall"], *coverage["by_target"].values(), *coverage["by_horizon"]] == pytest.approx(
            [rank / 41] * 8, abs=1e-12
        )
    assert report["price"] is None
    assert report["calibration_windows"] == 41


@pytest.mark.parametrize("kind", KINDS)
def test_price_coverage_of_calibration_windows_does_not_depend_on_last_close(kind: str) -> None:
    result, last_close = split(), np.linspace(10, 5000, 41)
    intervals = calibrated(result, kind)
    forecast, truth = (to_prices(SCALER.inverse(v), kind, last_close) for v in (result.forecast, result.truth))
    bounds = price_bounds(intervals, forecast, None, scaler=SCALER, kind=kind, last_close=last_close)
    for lower, upper, rank in zip(*bounds, (21, 34, 40), strict=True):
        # The truth that determines the width is on a bound, up to the rounding of logarithms.
        inside = (lower <= truth * (1 + 1e-12)) & (truth <= upper * (1 + 1e-12))
        assert (inside.sum(axis=0) == rank).all()
        np.testing.assert_allclose(lower * upper, forecast**2, rtol=1e-12)


def test_price_widths_are_those_of_chained_returns() -> None:
    # The return of the close is 0.01 too high on both days, so prices are 1 %, then 2 % too high.
    truth = np.zeros((19, 2, 4))
    result = SplitForecast(truth + np.array([0, 0, 0, 1.0]), truth, 1.0, None, np.zeros((2, 2)))
    intervals = calibrated(result)
    assert intervals.log_price is not None
    for width in intervals.log_price:
        assert width is not None
        np.testing.assert_allclose(width, [[0, 0, 0, 0.01], [0.01, 0.01, 0.01, 0.02]], atol=1e-15)
    lower, upper = price_bounds(
        intervals, np.full((1, 2, 4), 100.0), None, scaler=SCALER, kind="returns", last_close=np.ones(1)
    )
    np.testing.assert_allclose(upper[0, 0, 1], 100 * np.exp([0.01, 0.01, 0.01, 0.02]))
    np.testing.assert_allclose(lower[0, 0, 1], 100 * np.exp([-0.01, -0.01, -0.01, -0.02]))


def test_uncalibrated_level_has_nan_bounds_and_no_coverage(caplog: pytest.LogCaptureFixture) -> None:
    result = split(windows=6)
    intervals = calibrated(result)
    assert [record.getMessage() for record in caplog.records] == [
        "no finite interval of level 0.95: it needs 19 validation windows with finite forecasts, not 6; raise "
        "data.validation_length"
    ]
    forecast = to_prices(SCALER.inverse(result.forecast), "returns")
    scaled = scaled_bounds(intervals, result.forecast, None)
    price = price_bounds(intervals, forecast, None, scaler=SCALER, kind="returns", last_close=np.ones(6))
    for lower, upper in (scaled, price):
        assert np.isfinite(lower[:2]).all()
        assert np.isnan(lower[2]).all()
        assert np.isnan(upper[2]).all()
    report = interval_report(intervals, (scaled, result.truth), (price, forecast), TARGETS)
    for units in ("scaled", "price"):
        last_level = report[units][2]
        assert last_level["nominal"] == 0.95
        assert last_level["mean_width"] is None
        assert last_level["coverage"] == {
            "overall": None, "by_target": dict.fromkeys(TARGETS), "by_horizon": [None] * 3,
        }  # fmt: skip
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_mean_width_is_twice_mean_half_width() -> None:
    result = split()
    intervals = calibrated(result, kind=None)
    assert intervals.log_price is None
    report = interval_report(intervals, (scaled_bounds(intervals, result.forecast, None), result.truth), None, TARGETS)
    for level, width in zip(report["scaled"], intervals.scaled, strict=True):
        assert width is not None
        assert level["mean_width"] == pytest.approx(2 * width.mean(), rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 4), (1, 3, 3), (1, 1, 4)])
def test_forecasts_with_other_days_or_targets_are_rejected(shape: tuple[int, int, int]) -> None:
    intervals = calibrated(split())
    with pytest.raises(DataError, match=r"days and targets \[3, 4\], not"):
        scaled_bounds(intervals, np.zeros(shape), None)
    with pytest.raises(DataError, match=r"days and targets \[3, 4\], not"):
        price_bounds(intervals, np.ones(shape), None, scaler=SCALER, kind="returns", last_close=np.ones(1))


def test_intervals_of_other_targets_have_no_price_bounds() -> None:
    intervals = calibrated(split(), kind=None)
    with pytest.raises(DataError, match="targets that are not prices"):
        price_bounds(intervals, np.ones((1, 3, 4)), None, scaler=SCALER, kind="returns", last_close=np.ones(1))


def test_calibration_is_finite_if_prices_overflow() -> None:
    overflowing = split(windows=19)
    overflowing.forecast[0] = 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intervals = calibrated(overflowing)
    assert json.loads(json.dumps(intervals.to_dict(), allow_nan=False)) == intervals.to_dict()
    assert intervals.log_price is not None
    assert intervals.log_price[2] is not None
    assert intervals.log_price[2].max() > 1e4


# --- mixtures ---------------------------------------------------------------------------------------------------------


def test_bounds_of_mixture_are_its_quantiles() -> None:
    mixture = normals()
    result = with_mixture(mixture)
    intervals = calibrated(result)
    assert (intervals.method, intervals.windows) == ("mixture", 0)
    lower, upper = scaled_bounds(intervals, result.forecast, mixture)
    for level, low, high in zip(LEVELS, lower, upper, strict=True):
        # Bisection is exact to the rounding of numbers of size 10.
        np.testing.assert_allclose(low, (mixture.means - Z[level] * mixture.stds)[..., 0], atol=1e-12)
        np.testing.assert_allclose(high, (mixture.means + Z[level] * mixture.stds)[..., 0], atol=1e-12)


def test_coverage_of_mixture_agrees_with_its_cdf() -> None:
    rng = np.random.default_rng(4)
    shape = 30, 2, 4, 3
    mixture = MixtureArrays(
        rng.normal(size=shape), rng.uniform(0.1, 2, size=shape), rng.dirichlet(np.ones(3), size=shape[:2])
    )
    truth = rng.normal(scale=2, size=shape[:3])
    intervals = mixture_intervals()
    report = interval_report(intervals, (scaled_bounds(intervals, truth, mixture), truth), None, TARGETS)
    shares = [level["coverage"]["overall"] for level in report["scaled"]]
    assert shares == pytest.approx(interval_coverage(mixture, truth, LEVELS), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_price_intervals_of_normal_returns_match_distribution_of_sums(kind: str) -> None:
    mixture, last_close = normals(windows=2, days=3), np.array([100.0, 2000.0])
    lower, upper = price_bounds(
        mixture_intervals(), np.ones((2, 3, 4)), mixture, scaler=SCALER, kind=kind, last_close=last_close, draws=40_000
    )
    means = SCALER.inverse(mixture.means[..., 0])
    variances = (mixture.stds[..., 0] * SCALER.std) ** 2
    if kind == "returns":  # add the returns of the close of all earlier days
        for part in (means, variances):
            closes = part[..., 3:]
            part += np.cumsum(closes, axis=1) - closes
        means += np.log(last_close)[:, None, None]
    for level, low, high in zip(LEVELS, lower, upper, strict=True):
        # The standard error of a quantile is sqrt(p (1 - p) / draws) / density, below 0.014 standard deviations here;
        # 5 standard errors are allowed for 48 quantiles.
        for bound, sign in ((low, -1), (high, 1)):
            error = (np.log(bound) - means) / np.sqrt(variances) - sign * Z[level]
            assert np.abs(error).max() < 0.07


def test_targets_share_component_of_day_only_in_joint_mode() -> None:
    means = np.stack([np.full((1, 2, 4), -50.0), np.full((1, 2, 4), 50.0)], axis=-1)
    mixture = MixtureArrays(means, np.ones_like(means), np.full((1, 2, 2), 0.5))
    shares = {}
    for mode in ("independent", "joint"):
        logs = simulate_log_prices(mixture, 0, mixture_intervals(mode), SCALER, "levels", 4000)
        above = logs > SCALER.mean
        shares[mode] = np.mean(above[:, 0, 0] == above[:, 0, 3])
        # Days are drawn independently in both modes; the tolerance is four standard errors of a share of 4,000.
        assert np.mean(above[:, 0, 0] == above[:, 1, 0]) == pytest.approx(0.5, abs=0.032)
    assert shares["joint"] == 1
    assert shares["independent"] == pytest.approx(0.5, abs=0.032)


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_targets_and_days_are_independent_within_component(mode: str) -> None:
    mixture = MixtureArrays(np.zeros((1, 2, 4, 1)), np.ones((1, 2, 4, 1)), np.ones((1, 2, 1)))
    scaled = SCALER.transform(simulate_log_prices(mixture, 0, mixture_intervals(mode), SCALER, "levels", 10_000))
    correlation = np.corrcoef(scaled.reshape(10_000, 8), rowvar=False)
    # Four standard errors of a correlation over 10,000 pairs.
    np.testing.assert_allclose(correlation, np.eye(8), atol=0.04)


def test_components_are_drawn_in_proportion_to_weights() -> None:
    means = np.broadcast_to(np.array([-100.0, 0.0, 100.0]), (1, 1, 4, 3))
    mixture = MixtureArrays(means, np.full((1, 1, 4, 3), 0.01), np.array([[[0.1, 0.0, 0.9]]]))
    for mode in ("independent", "joint"):
        logs = simulate_log_prices(mixture, 0, mixture_intervals(mode), SCALER, "levels", 4000)
        scaled = SCALER.transform(logs)
        assert not (np.abs(scaled) < 50).any(), "a component of weight 0"
        # Four standard errors of a share of 4,000.
        assert np.mean(scaled[:, 0, 1] > 50) == pytest.approx(0.9, abs=0.019)


def test_simulated_bounds_depend_only_on_seed_and_window() -> None:
    mixture = normals()
    first_window = MixtureArrays(*(part[:1] for part in mixture))

    def bounds(seed: int, parts: MixtureArrays) -> np.ndarray:
        windows = len(parts.means)
        return np.stack(
            price_bounds(mixture_intervals(seed=seed), np.ones((windows, 2, 4)), parts, scaler=SCALER, kind="returns",
                         last_close=np.ones(windows), draws=200)
        )  # fmt: skip

    state = np.random.get_state()[1].copy()
    all_windows = bounds(7, mixture)
    assert np.array_equal(all_windows, bounds(7, mixture))
    assert np.array_equal(all_windows[:, :, :1], bounds(7, first_window)), "a window does not depend on the others"
    assert not np.array_equal(all_windows, bounds(8, mixture))
    equal_windows = MixtureArrays(*(np.repeat(part[:1], 2, axis=0) for part in mixture))
    first_bounds, second_bounds = np.moveaxis(bounds(7, equal_windows), 2, 0)
    assert not np.array_equal(first_bounds, second_bounds), "every window has its own draws"
    assert np.array_equal(np.random.get_state()[1], state)


def test_overflowing_simulated_prices_are_infinite_with_unknown_width() -> None:
    mixture = MixtureArrays(np.full((1, 2, 4, 1), 1e6), np.ones((1, 2, 4, 1)), np.ones((1, 2, 1)))
    intervals = mixture_intervals()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bounds = price_bounds(
            intervals, np.full((1, 2, 4), np.inf), mixture, scaler=SCALER, kind="returns", last_close=np.ones(1)
        )
        report = interval_report(intervals, (bounds, np.ones((1, 2, 4))), (bounds, np.ones((1, 2, 4))), TARGETS)
    assert (bounds[0] == np.inf).all()
    assert report["price"][0]["mean_width"] is None
    assert report["price"][0]["coverage"]["overall"] == 0


def test_intervals_of_other_method_are_rejected() -> None:
    point, mixture = split(), normals()
    prices = {"scaler": SCALER, "kind": "returns", "last_close": np.ones(1)}
    with pytest.raises(DataError, match="intervals is mixture, but the model forecasts a point"):
        scaled_bounds(mixture_intervals(), point.forecast, None)
    with pytest.raises(DataError, match="intervals is mixture, but the model forecasts a point"):
        price_bounds(mixture_intervals(), point.forecast, None, **prices)
    with pytest.raises(DataError, match="intervals is conformal, but the model forecasts a mixture"):
        scaled_bounds(calibrated(point), point.forecast, mixture)
    with pytest.raises(DataError, match="intervals is conformal, but the model forecasts a mixture"):
        price_bounds(calibrated(point), point.forecast, mixture, **prices)


# --- stored -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [41, 6])
@pytest.mark.parametrize("kind", ["returns", None])
def test_json_round_trip_is_bitwise_exact(windows: int, kind: str | None) -> None:
    for result in (split(windows), with_mixture(normals())):
        intervals = calibrated(result, kind, mode="joint")
        content = json.loads(json.dumps(intervals.to_dict(), allow_nan=False))
        restored = Intervals.from_dict(content)
        assert restored.to_dict() == intervals.to_dict()
        assert np.array_equal(
            scaled_bounds(restored, result.forecast, result.mixture),
            scaled_bounds(intervals, result.forecast, result.mixture),
            equal_nan=True,
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": None}, "the method is None"),
        ({"method": ["conformal"]}, "the method is"),
        ({"levels": []}, "the levels are"),
        ({"levels": [0.5, 0.5, 0.95]}, "the levels are"),
        ({"levels": [0.5, 0.8, 1.0]}, "the levels are"),
        ({"levels": [0.5, 0.8, float("nan")]}, "the levels are"),
        ({"levels": [0.5, 0.8]}, "2 levels, but 3 tables of widths in scaled"),
        ({"levels": 0.5}, "TypeError"),
        ({"windows": "many"}, "ValueError"),
        ({"windows": float("inf")}, "OverflowError"),
        ({"scaled": [[[1.0]], [[1.0]], [[1.0, 2.0]]], "log_price": None}, "different shapes"),
        ({"scaled": [[[1.0], [1.0, 2.0]], None, None]}, "ValueError"),
        ({"scaled": [[[-1.0]], None, None]}, "not a table of finite, non-negative numbers"),
        ({"scaled": [[[float("inf")]], None, None]}, "not a table of finite, non-negative numbers"),
        ({"scaled": [1.0, None, None]}, "not a table of finite, non-negative numbers"),
        ({"scaled": [], "log_price": None}, "3 levels, but 0 tables"),
        ({"log_price": [None]}, "3 levels, but 1 tables of widths in log_price"),
        ({"method": "mixture", "mixture_mode": "shared"}, "the mixture mode is 'shared'"),
        ({"method": "mixture", "seed": -1}, "the seed -1"),
        ({"seed": None}, "TypeError"),
    ],
)
def test_damaged_intervals_are_rejected(change: dict[str, Any], message: str) -> None:
    content = calibrated(split()).to_dict()
    with pytest.raises(DataError, match=f"not stored intervals: .*{message}"):
        Intervals.from_dict(content | change)
    for key in content:
        with pytest.raises(DataError, match=f"KeyError: '{key}'"):
            Intervals.from_dict({name: value for name, value in content.items() if name != key})


def test_select_keeps_requested_levels() -> None:
    result = split()
    intervals = calibrated(result)
    subset = intervals.select([0.95, 0.5])
    assert subset.levels == (0.95, 0.5)
    all_bounds, subset_bounds = (
        np.stack(scaled_bounds(calibration, result.forecast, None)) for calibration in (intervals, subset)
    )
    assert np.array_equal(subset_bounds, all_bounds[:, [2, 0]])
    with pytest.raises(DataError, match=r"no interval of level 0\.9: choose among 0\.5, 0\.8, 0\.95"):
        intervals.select([0.9])


def test_mixture_has_intervals_of_any_level() -> None:
    assert mixture_intervals().select([0.9]).levels == (0.9,)
    with pytest.raises(DataError, match="no interval of level 1"):
        mixture_intervals().select([1.0])
