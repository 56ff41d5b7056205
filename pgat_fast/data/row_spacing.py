"""Spacing of the rows of a file in time: days, weeks, months or something else; and the rows that would follow."""

import numpy as np
from numpy.typing import NDArray

Days = NDArray[np.datetime64]

_SPACINGS = (
    ("weekly", 5, 9),
    ("two-weekly", 12, 16),
    ("monthly", 26, 35),
    ("quarterly", 80, 100),
    ("yearly", 350, 380),
)
"""Names of spacings, and between which numbers of days their median gap lies."""


def spacing_of(dates: Days) -> str:
    """Return `daily`, `weekly`, `two-weekly`, `monthly`, `quarterly`, `yearly` or `irregular` for days [n], increasing.

    The median gap decides; single gaps may be longer or shorter. Fewer than four rows count as daily.
    """
    gaps = gaps_of(dates)
    if len(gaps) < 3:
        return "daily"
    median = float(np.median(gaps))
    # Days of an exchange: most gaps are one day. A few rows around a weekend or a holiday are daily, too.
    if np.mean(gaps == 1) >= 0.4 or (len(gaps) < 10 and gaps.min() == 1 and median < 5):
        return "daily"
    return next((name for name, least, most in _SPACINGS if least <= median <= most), "irregular")


def gaps_of(dates: Days) -> NDArray[np.int64]:
    """Return the gaps between consecutive days, in days, [n - 1]."""
    return np.diff(dates.astype("datetime64[D]")).astype(np.int64)


def next_weeks(dates: Days, count: int) -> Days:
    """Return a day in each of the `count` weeks after the last of `dates`, on their most frequent weekday."""
    weekdays = (dates[-52:].astype("datetime64[D]").astype(np.int64) + 3) % 7  # 1970-01-01, day 0, was a Thursday
    usual = int(np.bincount(weekdays).argmax())
    # The last row may be stamped a few days off: a holiday, or a week that is not over.
    off = (usual - int(weekdays[-1]) + 3) % 7 - 3
    return np.asarray(dates[-1].astype("datetime64[D]") + off + 7 * np.arange(1, count + 1))


def next_months(dates: Days, count: int) -> Days:
    """Return a day in each of the `count` months after the last of `dates`, stamped as most of them are.

    That is the first or the last day of the month, its first or last weekday, or else a day of the same number.
    """
    dates = dates.astype("datetime64[D]")
    months = dates[-1].astype("datetime64[M]") + np.arange(1, count + 1)
    past = dates[-37:-1] if len(dates) > 3 else dates  # the last month may not be over
    stamps = {
        "first day": (_first_days, 0.9),
        "last day": (_last_days, 0.9),
        "last weekday": (lambda values: np.busday_offset(_last_days(values), 0, roll="backward"), 0.7),
        "first weekday": (lambda values: np.busday_offset(_first_days(values), 0, roll="forward"), 0.6),
    }
    for days_of, least in stamps.values():
        if np.mean(days_of(past.astype("datetime64[M]")) == past) >= least:
            return np.asarray(days_of(months))
    number = int(np.median((past - past.astype("datetime64[M]")).astype(np.int64)))
    return np.minimum(_first_days(months) + number, _last_days(months))


def _first_days(months: Days) -> Days:
    return months.astype("datetime64[D]")


def _last_days(months: Days) -> Days:
    return np.asarray((months + 1).astype("datetime64[D]") - 1)
