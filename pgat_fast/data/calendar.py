"""Calendar features of each row as fractions, which the model's embedding turns into table indices."""

import numpy as np
from numpy.typing import NDArray

from pgat_fast.data.columns import CELLS
from pgat_fast.errors import ConfigError, DataError


def calendar_marks(dates: NDArray[np.datetime64], freq: str = "d") -> NDArray[np.float32]:
    """Return month, day, weekday (Monday first), hour and, for freq t, minute: [n] -> float32 [n, 4 or 5] in (0, 1).

    Value k of `cells` possible values becomes (k + 0.5) / cells, the middle of its cell, so that
    clamp(floor(mark * cells), 0, cells - 1) is k for every k in float32, with a margin of half a cell. Marks
    rounded to bfloat16 give k too. With the edge, k / cells, they would give k - 1 for every third minute.
    Dates without a time of day have hour 0.

    Raises DataError for a missing date, ConfigError for a freq other than d, h and t.
    """
    if freq not in ("d", "h", "t"):
        raise ConfigError(f"model.freq is {freq!r}: choose d (days), h (hours) or t (minutes)")
    if np.isnat(dates).any():
        raise DataError(f"date {int(np.flatnonzero(np.isnat(dates))[0])} of {len(dates)} is missing (NaT)")
    months, days = dates.astype("datetime64[M]"), dates.astype("datetime64[D]")
    hours, minutes = dates.astype("datetime64[h]"), dates.astype("datetime64[m]")
    values = {
        "month": months.astype(np.int64) % 12,
        "day": (days - months).astype(np.int64),
        "weekday": (days.astype(np.int64) + 3) % 7,  # 1970-01-01, day 0, was a Thursday
        "hour": (hours - days).astype(np.int64),
        "minute": (minutes - hours).astype(np.int64),
    }
    fields = list(CELLS) if freq == "t" else list(CELLS)[:4]
    return np.stack([(values[name] + 0.5) / CELLS[name] for name in fields], axis=-1).astype(np.float32)
