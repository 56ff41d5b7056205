"""Point forecast errors, overall and per target."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Metrics = dict[str, float | None]

PERCENTAGE_FLOOR = 1.17e-06
"""Smallest |truth| that percentage errors divide by, the floor that torchmetrics uses."""


def point_metrics(forecast: Array, truth: Array) -> Metrics:
    """MAE, MSE, RMSE, MAPE and MSPE over all entries of two arrays of one shape.

    MAPE and MSPE are fractions, not percent: 0.01 is one percent. They mean little where the truth is near zero, as
    scaled values and returns are; read them in price units. A measure that overflows (a price is the exponential of
    a forecast) is None: JSON has no infinity.
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
    """`point_metrics` under `overall` and under the name of every target; arrays are [windows, P, targets]."""
    table = {"overall": point_metrics(forecast, truth)}
    for index, target in enumerate(targets):
        table[target] = point_metrics(forecast[..., index], truth[..., index])
    return table


def finite(value: float | np.floating[Any]) -> float | None:
    """`value` as a plain float; None where it is NaN or infinite, which JSON has no word for."""
    return float(value) if np.isfinite(value) else None


def skill(error: float | None, baseline_error: float | None) -> float | None:
    """1 - error / baseline error: 1 is perfect, 0 no better than the baseline.

    None where an error is unknown or the baseline has none.
    """
    return None if error is None or not baseline_error else 1 - error / baseline_error


def rmse_by_horizon(forecast: Array, truth: Array) -> list[float | None]:
    """RMSE of each forecast day over windows and targets; arrays are [windows, P, targets]. None where it overflows."""
    return [point_metrics(forecast[:, day], truth[:, day])["rmse"] for day in range(truth.shape[1])]
