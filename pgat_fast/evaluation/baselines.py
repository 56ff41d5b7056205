"""Naive forecasts, the baselines that a useful model must beat."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgat_fast.data.columns import TARGETS

Array = NDArray[np.float64]

BASELINES = ("last_value", "zero_return", "drift")


def naive_forecasts(
    values: Array, targets: Sequence[str], last_rows: NDArray[np.int64], pred_len: int, kind: str, training_rows: range
) -> dict[str, Array]:
    """Compute the naive forecasts of the `pred_len` rows after each of `last_rows`.

    Args:
        values: unscaled target columns of the whole table, [n, C].
        targets: names of the C columns.
        last_rows: index of the last known row of every window, [W].
        kind: `returns` (values are log(price / previous close)) or `levels` (values are log(price)).
        training_rows: rows from which the drift is estimated.

    Returns:
        Name -> [W, P, C], unscaled. `last_value` repeats the last row. `zero_return` keeps the price at the last close.
        `drift` continues the price with the mean daily change of the training rows (Hyndman & Athanasopoulos,
        Forecasting: Principles and Practice, section 5.2). `zero_return` is absent if no target is a price.

    Raises:
        ValueError: `kind` is neither `returns` nor `levels`.
    """
    last = values[last_rows][:, None]  # [W, 1, C]
    shape = (len(last_rows), pred_len, values.shape[1])
    training = values[training_rows.start : training_rows.stop]
    if kind == "returns":
        zero_return, drift = np.zeros(shape), np.broadcast_to(training.mean(axis=0), shape)
    elif kind == "levels":
        names = [name.lower().removeprefix("log_") for name in targets]
        zero_return = last[..., [names.index("close")]] if "close" in names else last
        days = np.arange(1, pred_len + 1, dtype=np.float64)[:, None]
        drift = last + days * np.diff(training, axis=0).mean(axis=0)
    else:
        raise ValueError(f"kind is {kind!r}, not 'returns' or 'levels'")
    forecasts = {"last_value": last, "zero_return": zero_return, "drift": drift}
    if not set(targets) & set(TARGETS):
        del forecasts["zero_return"]
    return {name: np.broadcast_to(forecast, shape).astype(np.float64) for name, forecast in forecasts.items()}
