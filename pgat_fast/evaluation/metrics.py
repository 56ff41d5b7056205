"""Point forecast errors, overall and per target."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PERCENTAGE_FLOOR = 1.17e-06
"""Smallest |truth| that percentage errors divide by, the floor that torchmetrics uses."""


def point_metrics(forecast: Array, truth: Array) -> dict[str, float]:
    """MAE, MSE, RMSE, MAPE and MSPE over all entries of two arrays of one shape.

    MAPE and MSPE are fractions, not percent: 0.01 is one percent. They mean little where the truth is near zero, as
    scaled values and returns are; read them in price units.
    """
    error = forecast - truth
    relative = error / np.maximum(np.abs(truth), PERCENTAGE_FLOOR)
    mse = float(np.mean(error**2))
    return {
        "mae": float(np.mean(np.abs(error))),
        "mse": mse,
        "rmse": float(np.sqrt(mse)),
        "mape": float(np.mean(np.abs(relative))),
        "mspe": float(np.mean(relative**2)),
    }


def metrics_by_target(forecast: Array, truth: Array, targets: Sequence[str]) -> dict[str, dict[str, float]]:
    """`point_metrics` under `overall` and under the name of every target; arrays are [windows, P, targets]."""
    table = {"overall": point_metrics(forecast, truth)}
    for index, target in enumerate(targets):
        table[target] = point_metrics(forecast[..., index], truth[..., index])
    return table


def skill(error: float, baseline_error: float) -> float | None:
    """1 - error / baseline error: 1 is perfect, 0 no better than the baseline. None for a baseline without error."""
    return None if baseline_error == 0 else 1 - error / baseline_error
