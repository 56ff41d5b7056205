"""Conversion of forecast targets to prices."""

import numpy as np
from numpy.typing import ArrayLike

from pgat_fast.data.columns import TARGETS
from pgat_fast.data.csv_file import FloatArray
from pgat_fast.errors import ConfigError

_CLOSE = TARGETS.index("log_Close")


def to_prices(values: FloatArray, kind: str, last_close: ArrayLike = 1.0) -> FloatArray:
    """Turn unscaled targets [..., P, 4] (open, high, low, close) of P consecutive days into prices, [..., P, 4].

    `levels`: the targets are log(price), so the price is exp(value). `returns`: they are log(price / previous
    close), so the price on day h is exp(value) times the forecast close of day h - 1, and on the first day
    exp(value) times `last_close` ([...]). A file of returns holds no close: with the default, 1, prices are
    relative to the last known close.

    Raises ConfigError for another kind, ValueError for another shape.
    """
    logs = log_prices(values, kind)
    if kind == "levels":
        return np.exp(logs)
    prices: FloatArray = np.asarray(last_close, dtype=np.float64)[..., None, None] * np.exp(logs)
    return prices


def log_prices(values: FloatArray, kind: str) -> FloatArray:
    """Return the log prices [..., P, 4] of unscaled targets [..., P, 4], as in `to_prices` with a last close of 1.

    They are finite where a price would overflow. The last close cancels in the difference of two of them.

    Raises ConfigError for a kind that is neither `returns` nor `levels`, ValueError for another shape.
    """
    if kind not in ("returns", "levels"):
        raise ConfigError(f"the kind of targets is {kind!r}: choose returns or levels")
    if values.ndim < 2 or values.shape[-1] != len(TARGETS):
        raise ValueError(f"values have shape {list(values.shape)}, expected [..., P, {len(TARGETS)}]")
    values = np.asarray(values, dtype=np.float64)
    if kind == "levels":
        return values
    closes = values[..., _CLOSE]
    # Log of each day's previous close: the sum of the close returns of all earlier days, 0 for the first.
    base = np.cumsum(closes, axis=-1) - closes
    return values + base[..., None]
