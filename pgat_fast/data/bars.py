"""Order of open, high, low and close: rounding noise is mended, anything else is an error of the prices."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pgat_fast.data.csv_file import FloatArray, IntArray

BAR_TOLERANCE = 1.5e-6
"""Relative difference up to which a high below, or a low above, another price of the bar is rounding noise.

It covers two roundings of log prices to six decimals (1e-6), and by far those of float32 (at most two units in the last
place, 2.4e-7) and float64 (1e-16) in prices of which three were multiplied by adjusted close / close. A wrong cent is
an error: rounding all four prices to cents keeps their order. 0.01 of 5000 is 2e-6, beyond the tolerance.
"""

FLOAT32_NOISE = 2.5e-7
"""Two units in the last place of float32: mended noise above it may be a wrong last digit of a high price."""


class MendedBars(NamedTuple):
    """Bars whose high is the highest and whose low is the lowest price, but for `faults`."""

    bars: FloatArray
    """[n, 4]; the given array if nothing was mended."""
    rows: IntArray
    """Indices of the rows that were mended."""
    largest: float
    """The largest relative difference that was mended, 0 if none was."""
    high_faults: IntArray
    """Indices of the rows whose high is below another price by more than the tolerance."""
    low_faults: IntArray
    """The same for a low above another price."""


def mend_bars(bars: FloatArray, logs: bool = False) -> MendedBars:
    """Clip rounding noise in open, high, low, close, [n, 4]. `logs`: they are logarithms, all to one base price."""
    high, low = bars[:, 1], bars[:, 2]
    top, bottom = bars.max(axis=1), bars.min(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        too_low = top - high if logs else (top - high) / np.abs(top)
        too_high = low - bottom if logs else (low - bottom) / np.abs(low)
    noise_high = (too_low > 0) & (too_low <= BAR_TOLERANCE)
    noise_low = (too_high > 0) & (too_high <= BAR_TOLERANCE)
    rows = np.flatnonzero(noise_high | noise_low)
    largest = 0.0
    if len(rows):
        bars = bars.copy()
        bars[noise_high, 1] = top[noise_high]
        bars[noise_low, 2] = bottom[noise_low]
        largest = float(max(too_low[noise_high].max(initial=0.0), too_high[noise_low].max(initial=0.0)))
    return MendedBars(
        bars, rows, largest, np.flatnonzero(too_low > BAR_TOLERANCE), np.flatnonzero(too_high > BAR_TOLERANCE)
    )


def describe_mended(mended: MendedBars, place: Callable[[int], str]) -> str:
    """Return one line on the rows that were mended; nothing if there are none. `place(i)` names row i."""
    count = len(mended.rows)
    if not count:
        return ""
    rows = f"{count} row{'s' if count > 1 else ''} (first {place(int(mended.rows[0]))})"
    return (
        f"rounding noise of at most {mended.largest:.1e} of the price in {rows}: the high was raised to the highest "
        "price of the row, the low lowered to the lowest"
    )


def tell_apart(values: FloatArray) -> list[str]:
    """Write numbers with as many digits, at least 10, as tell all different ones apart."""
    different = len(set(values.tolist()))
    for digits in range(10, 18):
        texts = [f"{value:.{digits}g}" for value in values.tolist()]
        if len(set(texts)) == different:
            break
    return texts
