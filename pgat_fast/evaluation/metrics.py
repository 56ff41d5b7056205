"""Metrics of point forecasts, overall and per target."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Metrics = dict[str, float | None]

PERCENTAGE_FLOOR = 1.17e-06
"""Lower bound on |truth| in the denominator of percentage errors, as in torchmetrics."""


def point_metrics(forecast: Array, truth: Array) -> Metrics:
    """Compute MAE, MSE, RMSE, MAPE and MSPE over all entries of two arrays of the same shape.

    MAPE and MSPE are fractions, not percent: 0.01 is one percent. They are meaningful in price units, but hardly for
    truths near zero, such as scaled values and returns. A metric that overflows (a price is the exponential of a
    forecast) is None, because JSON has no infinity.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        error = forecast - truth
        relative = error / np.maximum(np.abs(truth), PERCENTAGE_FLOOR)
        mse = np.mean(error**2)
        measures = {
            "mae": np.mean(np.abs(error)),
            "mse": mse,
            "rmse": np.sqrt(mse),
            "mape": np.mean(np.abs(relative)),
            "mspe": np.mean(relative**2),
        }
    return {name: finite(value) for name, value in measures.items()}


def metrics_by_target(forecast: Array, truth: Array, targets: Sequence[str]) -> dict[str, Metrics]:
    """Compute `point_metrics` overall (key `overall`) and per target; arrays are [windows, P, targets]."""
    table = {"overall": point_metrics(forecast, truth)}
    for index, target in enumerate(targets):
        table[target] = point_metrics(forecast[..., index], truth[..., index])
    return table


def finite(value: float | np.floating[Any]) -> float | None:
    """Return `value` as a Python float, or None if it is NaN or infinite, which JSON cannot represent."""
    return float(value) if np.isfinite(value) else None


def skill(error: float | None, baseline_error: float | None) -> float | None:
    """Return the skill score 1 - error / baseline error: 1 is perfect, 0 is no better than the baseline.

    None if either error is unknown or the baseline error is 0.
    """
    return None if error is None or not baseline_error else 1 - error / baseline_error


def rmse_by_horizon(forecast: Array, truth: Array) -> list[float | None]:
    """Compute the RMSE of each forecast day over windows and targets, None where it overflows.

    Arrays are [windows, P, targets].
    """
    return [point_metrics(forecast[:, day], truth[:, day])["rmse"] for day in range(truth.shape[1])]
