"""Forecast intervals in scaled units and in prices, calibrated once and applied to any forecast of the same weights.

Point forecasts have split conformal intervals, with widths from the errors on windows that were not used for training
(Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005; Lei et al., Distribution-free predictive
inference, 2018). Their coverage guarantee assumes exchangeable windows. The validation windows overlap, come from a
single period, and were used to select the weights. Coverage is therefore measured on the test windows and not
guaranteed.

Mixtures have intervals between their own quantiles; in prices these are the quantiles of simulated paths.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pgat_fast.data.price_units import log_prices
from pgat_fast.data.scaling import Scaler
from pgat_fast.errors import DataError
from pgat_fast.evaluation.metrics import finite
from pgat_fast.evaluation.probabilistic import mixture_quantile
from pgat_fast.evaluation.split_forecasts import MixtureArrays, SplitForecast

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Bounds = tuple[Array, Array]
"""Lower and upper bounds, [levels, ...]; NaN where a level has no finite interval."""

LEVELS = (0.5, 0.8, 0.95)
"""Nominal coverage of the intervals."""

DRAWS = 2000
"""Simulated paths per window; the standard error of the 2.5 % quantile is then 0.35 % of probability."""


@dataclass(frozen=True, eq=False)
class Intervals:
    """Calibration from which the intervals of a forecast are computed."""

    method: str
    """`conformal` (point forecasts) or `mixture`."""
    levels: tuple[float, ...]
    windows: int
    """Number of validation windows used for the calibration; 0 for a mixture, which needs none."""
    scaled: tuple[Array | None, ...] = ()
    """Conformal: half widths in scaled units, one [P, C] per level; None for a level without a finite interval."""
    log_price: tuple[Array | None, ...] | None = None
    """Conformal: half widths of the logarithm of the price; None if the targets are not prices."""
    mixture_mode: str = "independent"
    """Mixture: the targets of a day draw their components independently (`independent`) or share one (`joint`)."""
    seed: int = 0
    """Mixture: seed of the simulated paths."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict, from which `from_dict` restores the same bits."""
        return {
            "method": self.method,
            "levels": list(self.levels),
            "windows": self.windows,
            "scaled": _to_lists(self.scaled),
            "log_price": None if self.log_price is None else _to_lists(self.log_price),
            "mixture_mode": self.mixture_mode,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Create intervals from the result of `to_dict`. Raises DataError if `content` has another form."""
        try:
            intervals = cls(
                method=content["method"],
                levels=tuple(float(level) for level in content["levels"]),
                windows=int(content["windows"]),
                scaled=_to_arrays(content["scaled"]),
                log_price=None if content["log_price"] is None else _to_arrays(content["log_price"]),
                mixture_mode=content["mixture_mode"],
                seed=int(content["seed"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"not stored intervals: {type(error).__name__}: {error}") from error
        if fault := _fault(intervals):
            raise DataError(f"not stored intervals: {fault}")
        return intervals

    def select(self, levels: Sequence[float]) -> Self:
        """Return these intervals for `levels` only.

        Raises DataError for a level not between 0 and 1, or one that conformal intervals do not have.
        """
        absent = [level for level in levels if not 0 < level < 1 or (self.scaled and level not in self.levels)]
        if absent:
            raise DataError(f"no interval of level {absent[0]:g}: choose among {', '.join(map(str, self.levels))}")
        indices = [self.levels.index(level) for level in levels] if self.scaled else []
        scaled = tuple(self.scaled[index] for index in indices)
        log_price = None if self.log_price is None else tuple(self.log_price[index] for index in indices)
        return replace(self, levels=tuple(levels), scaled=scaled, log_price=log_price)


def calibrate(
    validation: SplitForecast,
    scaler: Scaler,
    *,
    kind: str | None,
    mixture_mode: str,
    seed: int,
    levels: Sequence[float] = LEVELS,
) -> Intervals:
    """Calibrate intervals on the forecasts of the validation windows.

    `kind` is `returns` or `levels` for the four standard targets, and None for other targets, which are not prices.
    Logs a warning for each level for which there are too few windows.
    """
    if validation.mixture is not None:
        return Intervals("mixture", tuple(levels), 0, mixture_mode=mixture_mode, seed=seed)
    log_price = None
    if kind is not None:
        # The last close cancels in the difference of two logarithms.
        forecast, truth = (
            log_prices(scaler.inverse(values), kind) for values in (validation.forecast, validation.truth)
        )
        log_price = half_widths(forecast - truth, levels)
    scaled = half_widths(validation.forecast - validation.truth, levels)
    windows = len(validation.truth)
    for level, width in zip(levels, scaled, strict=True):
        if width is None:
            logger.warning(
                "no finite interval of level %g: it needs %d validation windows with finite forecasts, not %d; raise "
                "data.validation_length", level, windows_needed(level), windows,
            )  # fmt: skip
    return Intervals("conformal", tuple(levels), windows, scaled, log_price)


def half_widths(errors: Array, levels: Sequence[float]) -> tuple[Array | None, ...]:
    """Return, for each of `levels`, half the interval width of each day and target, [P, C]; None if it is infinite.

    The half width is the absolute error of rank ceil((W + 1) * level) among the W windows of `errors` [W, P, C]. If the
    rank exceeds W, no finite interval has the level (95 % needs 19 windows). Non-finite errors rank last and may
    leave no finite interval either.
    """
    count = len(errors)
    ordered = np.sort(np.abs(errors), axis=0)  # NaN sorts last
    indices = [rank(count, level) - 1 for level in levels]
    return tuple(ordered[index] if index < count and np.isfinite(ordered[index]).all() else None for index in indices)


def rank(count: int, level: float) -> int:
    """Return ceil((count + 1) * level), without rounding a product such as 20 * 0.95 up to 20."""
    return math.ceil((count + 1) * level - 1e-9)


def windows_needed(level: float) -> int:
    """Return the smallest number of windows W with ceil((W + 1) * level) <= W."""
    return math.ceil(level / (1 - level) - 1e-9)


def scaled_bounds(intervals: Intervals, forecast: Array, mixture: MixtureArrays | None) -> Bounds:
    """Return the interval bounds of forecasts [W, P, C] in scaled units, lower and upper, [levels, W, P, C].

    Raises DataError if the intervals are of another method or have other numbers of days or targets.
    """
    _check_method(intervals, mixture)
    if mixture is None:
        widths = _stack(intervals.scaled, forecast.shape[1:])[:, None]
        return forecast - widths, forecast + widths
    weights = np.broadcast_to(mixture.weights[:, :, None], mixture.means.shape)
    bounds = [
        [mixture_quantile(0.5 + sign * level / 2, mixture.means, mixture.stds, weights) for level in intervals.levels]
        for sign in (-1, 1)
    ]
    return np.stack(bounds[0]), np.stack(bounds[1])


def price_bounds(
    intervals: Intervals,
    prices: Array,
    mixture: MixtureArrays | None,
    *,
    scaler: Scaler,
    kind: str,
    last_close: Array,
    draws: int = DRAWS,
) -> Bounds:
    """Return the interval bounds of forecast prices [W, P, 4], lower and upper, [levels, W, P, 4].

    Conformal: price * exp(-+ half width). Mixture: quantiles of `draws` simulated paths, see `simulate_log_prices`.

    Args:
        intervals: intervals with `log_price` half widths, or of a mixture.
        prices: the forecast prices.
        mixture: the forecast mixture; None for a point forecast.
        scaler: scaler of the targets.
        kind: `returns` or `levels`.
        last_close: [W], the close from which returns are chained.
        draws: number of paths per window.

    Raises:
        DataError: the intervals are of another method, have another number of days, or are not of prices.
    """
    _check_method(intervals, mixture)
    if mixture is None:
        if intervals.log_price is None:
            raise DataError("these intervals are for targets that are not prices")
        with np.errstate(over="ignore"):
            widths = np.exp(_stack(intervals.log_price, prices.shape[1:])[:, None])
            return prices / widths, prices * widths
    probabilities = [0.5 + sign * level / 2 for sign in (-1, 1) for level in intervals.levels]
    # One window at a time, because the paths of all windows would need much memory.
    logs = np.stack(
        [
            np.quantile(simulate_log_prices(mixture, window, intervals, scaler, kind, draws), probabilities, axis=0)
            for window in range(len(prices))
        ],
        axis=1,
    )
    with np.errstate(over="ignore"):
        bounds = np.exp(logs) * (last_close[:, None, None] if kind == "returns" else 1.0)
    count = len(intervals.levels)
    return bounds[:count], bounds[count:]


def simulate_log_prices(
    mixture: MixtureArrays, window: int, intervals: Intervals, scaler: Scaler, kind: str, draws: int
) -> Array:
    """Draw `draws` paths of one window from the mixture and return their log prices, [draws, P, 4]; see `log_prices`.

    The model does not forecast the dependence between days, so days are drawn independently. Within a day, the four
    targets share the component if `mixture_mode` is `joint` and are independent if it is `independent`. The draws
    depend only on the seed of `intervals` and on `window`.
    """
    means, stds, weights = (part[window] for part in mixture)  # [P, C, K], [P, C, K], [P, K]
    days, targets, _ = means.shape
    generator = np.random.default_rng([intervals.seed, window])
    uniforms = generator.random((draws, days, 1 if intervals.mixture_mode == "joint" else targets, 1))
    component = (uniforms > np.cumsum(weights, axis=-1)[None, :, None, :-1]).sum(axis=-1)  # [draws, P, 1 or C]
    component = np.broadcast_to(component, (draws, days, targets))
    day, target = np.arange(days)[:, None], np.arange(targets)
    values = means[day, target, component] + stds[day, target, component] * generator.standard_normal(component.shape)
    return log_prices(scaler.inverse(values), kind)


def interval_report(
    intervals: Intervals,
    scaled: tuple[Bounds, Array],
    price: tuple[Bounds, Array] | None,
    targets: Sequence[str],
) -> dict[str, Any]:
    """Report the nominal coverage, the observed coverage and the mean width of the intervals of each level.

    `scaled` and `price` are the bounds and the truth [W, P, C] in these units. Coverage and width of a level without a
    finite interval are None.
    """
    return {
        "method": intervals.method,
        "calibration_windows": intervals.windows,
        "scaled": _coverage(intervals.levels, *scaled, targets),
        "price": None if price is None else _coverage(intervals.levels, *price, targets),
    }


def _coverage(levels: Sequence[float], bounds: Bounds, truth: Array, targets: Sequence[str]) -> list[dict[str, Any]]:
    report = []
    for level, lower, upper in zip(levels, *bounds, strict=True):
        inside = np.where(np.isnan(lower), np.nan, (lower <= truth) & (truth <= upper))
        report.append(
            {
                "nominal": level,
                "coverage": {
                    "overall": finite(inside.mean()),
                    "by_target": {name: finite(inside[..., index].mean()) for index, name in enumerate(targets)},
                    "by_horizon": [finite(share) for share in inside.mean(axis=(0, 2))],
                },
                "mean_width": _mean_width(lower, upper),
            }
        )
    return report


def _check_method(intervals: Intervals, mixture: MixtureArrays | None) -> None:
    if (intervals.method == "mixture") != (mixture is not None):
        forecast = "a point" if mixture is None else "a mixture"
        raise DataError(f"the method of the intervals is {intervals.method}, but the model forecasts {forecast}")


def _mean_width(lower: Array, upper: Array) -> float | None:
    with np.errstate(over="ignore", invalid="ignore"):  # prices may overflow
        return finite((upper - lower).mean())


def _stack(widths: Sequence[Array | None], shape: tuple[int, ...]) -> Array:
    """Stack the widths to [levels, *shape], with NaN for None. Raises DataError for widths of another shape."""
    for width in widths:
        if width is not None and width.shape != shape:
            raise DataError(f"these intervals are for days and targets {list(width.shape)}, not {list(shape)}")
    return np.stack([np.full(shape, np.nan) if width is None else width for width in widths])


def _fault(intervals: Intervals) -> str | None:
    """Return a description of the first error in stored intervals, or None."""
    levels = intervals.levels
    if intervals.method not in ("conformal", "mixture"):
        return f"the method is {intervals.method!r}, not conformal or mixture"
    if not levels or not all(0 < level < 1 for level in levels) or len(set(levels)) < len(levels):
        return f"the levels are {list(levels)}, not different numbers between 0 and 1"
    if intervals.method == "mixture":
        valid = intervals.mixture_mode in ("independent", "joint") and intervals.seed >= 0
        return None if valid else f"the mixture mode is {intervals.mixture_mode!r} and the seed {intervals.seed}"
    for name, tables in (("scaled", intervals.scaled), ("log_price", intervals.log_price)):
        if tables is not None and len(tables) != len(levels):
            return f"{len(levels)} levels, but {len(tables)} tables of widths in {name}"
    widths = [*intervals.scaled, *(intervals.log_price or ())]
    if len({width.shape for width in widths if width is not None}) > 1:
        return "the tables of widths have different shapes"
    return None


def _to_lists(widths: Sequence[Array | None]) -> list[Any]:
    return [None if width is None else width.tolist() for width in widths]


def _to_arrays(widths: Sequence[Any]) -> tuple[Array | None, ...]:
    arrays = tuple(None if width is None else np.array(width, dtype=np.float64) for width in widths)
    for array in arrays:
        if array is not None and (array.ndim != 2 or not (np.isfinite(array) & (array >= 0)).all()):
            raise ValueError("a width is not a table of finite, non-negative numbers")
    return arrays
