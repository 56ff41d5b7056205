"""Tables of forecasts and of the adjacency, as written to `forecasts.csv` and `adjacency.csv`."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pgat_fast.evaluation.intervals import Bounds

Array = NDArray[np.float64]


def forecast_table(
    dates: NDArray[np.datetime64],
    rows: NDArray[np.int64],
    targets: Sequence[str],
    forecast: Array,
    truth: Array,
    prices: tuple[Array, Array, Bounds] | None,
    levels: Sequence[float],
) -> pd.DataFrame:
    """Return a table of forecasts with a row for each window, forecast day and target.

    Args:
        dates: dates of all rows of the data, [n].
        rows: index of the last known row of each window, [W].
        targets: C names.
        forecast, truth: in the units of the targets, [W, P, C].
        prices: forecast and true prices [W, P, C] and the interval bounds [levels, W, P, C]; None if the targets are
            not prices.
        levels: nominal coverage of each interval, as a fraction.

    Returns:
        The columns `origin` (the last known day), `date` (the forecast day), `horizon` (from 1), `target`, `forecast`,
        `truth`, `price_forecast`, `price_truth`, and for each level columns such as `price_lower_80` and
        `price_upper_80`. The price columns are NaN if `prices` is None.
    """
    windows, days, target_count = forecast.shape
    horizons = np.arange(1, days + 1)
    shape = (windows, days, target_count)

    def column(values: Array) -> Array:
        return np.ascontiguousarray(np.broadcast_to(values, shape)).ravel()

    missing = np.full(shape, np.nan)
    price_forecast, price_truth, (lower, upper) = prices or (missing, missing, ([missing] * len(levels),) * 2)
    table = pd.DataFrame(
        {
            "origin": np.broadcast_to(dates[rows][:, None, None], shape).ravel(),
            "date": np.broadcast_to(dates[rows[:, None] + horizons][..., None], shape).ravel(),
            "horizon": np.broadcast_to(horizons[None, :, None], shape).ravel(),
            "target": np.broadcast_to(np.array(targets, dtype=object), shape).ravel(),
            "forecast": column(forecast),
            "truth": column(truth),
            "price_forecast": column(price_forecast),
            "price_truth": column(price_truth),
        }
    )
    for level, low, high in zip(levels, lower, upper, strict=True):
        table[f"price_lower_{100 * level:g}"] = column(low)
        table[f"price_upper_{100 * level:g}"] = column(high)
    return table


def adjacency_table(adjacency: Array, nodes: Sequence[str]) -> pd.DataFrame:
    """Return the mean adjacency [N, N] with rows (receiving nodes) and columns labelled by node name."""
    return pd.DataFrame(adjacency, index=pd.Index(nodes), columns=pd.Index(nodes))
