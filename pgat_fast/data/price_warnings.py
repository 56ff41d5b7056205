"""Probable faults of prices: unadjusted splits, prices that do not vary, rows that repeat the row before."""

from collections.abc import Iterator

import numpy as np

from pgat_fast.data.csv_file import FloatArray
from pgat_fast.data.row_spacing import Days

JUMP = 1.8
"""Factor from one close to the next, or its inverse, that may be a split of 2 to 1 on a day with a move of 10 %."""

LONGEST_CONSTANT = 10
"""Number of consecutive rows with an equal price that is worth a warning; the S&P 500 has at most three."""

RECENT = 250
"""Number of rows at the end whose share of flat and of repeated bars is looked at: a year."""

_EQUAL = 1e-9
"""Log prices that differ less are equal: data files have ten digits."""

_COLUMNS = ("open", "high", "low", "close")


def price_warnings(dates: Days, logs: FloatArray) -> list[str]:
    """Return warnings on log prices of open, high, low, close [n, 4], one for each kind of fault."""
    if len(logs) < 2:
        return []
    return [*_jumps(dates, logs[:, 3]), *_constant(dates, logs), *_flat(dates, logs)]


def _jumps(dates: Days, closes: FloatArray) -> Iterator[str]:
    """Warn of changes by a factor that the changes around them do not explain."""
    changes = np.diff(closes)
    jumps = []
    for i in np.flatnonzero(np.abs(changes) > np.log(JUMP)):
        around = np.abs(np.concatenate([changes[max(0, i - 20) : i], changes[i + 1 : i + 21]]))
        # The median of the absolute values of a normal distribution is 0.67 of its standard deviation.
        usual = np.median(around) / 0.67 if len(around) else 0.0
        if np.abs(changes[i]) > 8 * usual:
            jumps.append(int(i))
    if not jumps:
        return
    shown = [f"{_factor(float(changes[i]))} from {dates[i]} to {dates[i + 1]}" for i in jumps[:3]]
    suffix = f", and {len(jumps) - 3} more" if len(jumps) > 3 else ""
    yield (
        f"the close changes by a factor of {', '.join(shown)}{suffix}: adjust the prices if this is a split or a "
        "change of the unit, or correct the row"
    )


def _factor(change: float) -> str:
    """Return the factor of a change of logarithms, and the whole number or its inverse that is near."""
    ratio = float(np.exp(abs(change)))
    whole = round(ratio)
    near = f" (about {whole if change > 0 else f'1/{whole}'})" if abs(ratio / whole - 1) < 0.1 else ""
    return f"{np.exp(change):.4g}{near}"


def _constant(dates: Days, logs: FloatArray) -> Iterator[str]:
    """Warn of a price that keeps its value over many rows."""
    longest: dict[tuple[int, int], list[str]] = {}
    for column, name in enumerate(_COLUMNS):
        first, last = longest_run(np.abs(np.diff(logs[:, column])) < _EQUAL)
        if last - first + 1 >= LONGEST_CONSTANT and last > first:
            longest.setdefault((first, last), []).append(name)
    if not longest:
        return
    (first, last), names = max(longest.items(), key=lambda item: item[0][1] - item[0][0])
    is_all = len(names) == len(_COLUMNS)
    subject = "the prices do" if is_all else f"the {' and the '.join(names)} {'do' if len(names) > 1 else 'does'}"
    yield f"{subject} not vary over {last - first + 1} rows, {dates[first]} to {dates[last]}: check the source"


def _flat(dates: Days, logs: FloatArray) -> Iterator[str]:
    """Warn of recent rows whose four prices are equal, and of rows that repeat the row before them."""
    recent, days = logs[-RECENT:], dates[-RECENT:]
    flat = np.ptp(recent, axis=1) < _EQUAL
    if len(recent) >= 5 and flat.mean() >= 0.5:
        yield (
            f"open, high, low and close are equal in {flat.sum()} of the last {len(recent)} rows (first "
            f"{days[flat][0]}): the source has no bars of these days, and the forecasts of the four prices will be "
            "alike"
        )
    repeated = np.flatnonzero((np.abs(np.diff(recent, axis=0)) < _EQUAL).all(axis=1)) + 1
    if len(repeated) >= max(5, 0.03 * len(recent)):
        shown = ", ".join(str(day) for day in days[repeated[:3]])
        yield (
            f"{len(repeated)} of the last {len(recent)} rows repeat the prices of the row before ({shown}, ...): "
            "leave out rows that were filled in for days without trading"
        )


def longest_run(mask: np.ndarray) -> tuple[int, int]:
    """Return start and end (exclusive) of the longest run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    longest = int(np.argmax(ends - starts))
    return int(starts[longest]), int(ends[longest])
