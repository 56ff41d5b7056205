"""The trading days after the last row of a data file, for which a forecast is made."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.holiday import (
    AbstractHolidayCalendar,
    GoodFriday,
    Holiday,
    USLaborDay,
    USMartinLutherKingJr,
    USMemorialDay,
    USPresidentsDay,
    USThanksgivingDay,
    nearest_workday,
    sunday_to_monday,
)

from pgat_fast.errors import ConfigError

Days = NDArray[np.datetime64]

CALENDARS = ("nyse", "weekdays", "daily")

UNSCHEDULED = 6
"""Number of unscheduled closures of the New York Stock Exchange to allow for in two years. There were four in September
2001, two for a storm in 2012, and one at the death of a president."""

FEWEST_ROWS = 120
"""Smallest number of rows to infer the exchange from: half a year, which has four to six holidays."""


class _NyseHolidays(AbstractHolidayCalendar):
    """Scheduled full-day closures of the New York Stock Exchange since 1998 (its rule 7.2).

    They are the federal holidays without Columbus Day and Veterans Day, and Good Friday. A holiday on a Saturday moves
    to the Friday, and one on a Sunday to the Monday; but the exchange does not close on the last Friday of a year for
    a New Year's Day on a Saturday. Unscheduled closures (mourning, storms) are not included.
    """

    rules = [  # noqa: RUF012 - as pandas declares it
        Holiday("New Year's Day", month=1, day=1, observance=sunday_to_monday),
        # A public holiday since 1986, observed by the exchange since 1998.
        Holiday(
            "Martin Luther King Day",
            month=1,
            day=1,
            offset=USMartinLutherKingJr.offset,
            start_date=pd.Timestamp(1998, 1, 1),
        ),
        USPresidentsDay,
        GoodFriday,
        USMemorialDay,
        # A public holiday since 2021, observed by the exchange since 2022.
        Holiday("Juneteenth", month=6, day=19, start_date=pd.Timestamp(2022, 1, 1), observance=nearest_workday),
        Holiday("Independence Day", month=7, day=4, observance=nearest_workday),
        USLaborDay,
        USThanksgivingDay,
        Holiday("Christmas Day", month=12, day=25, observance=nearest_workday),
    ]


def nyse_holidays(first: np.datetime64, last: np.datetime64) -> Days:
    """Return the scheduled holidays of the exchange from `first` to `last`, both included, datetime64[D]."""
    days = _NyseHolidays().holidays(pd.Timestamp(first), pd.Timestamp(last))
    return np.asarray(days.to_numpy()).astype("datetime64[D]")


def future_trading_days(dates: Days, count: int, calendar: str = "auto") -> Days:
    """Return the next `count` trading days after the last of `dates`, datetime64[D] [count].

    Args:
        dates: the days of the rows, [n], oldest first.
        count: how many days, at least 1.
        calendar: `nyse` (New York Stock Exchange), `weekdays` (Monday to Friday), `daily` (every day), or `auto`, the
            result of `calendar_of(dates)`.

    Raises ConfigError for another calendar, ValueError if there are no dates or `count` is below 1.
    """
    if not len(dates) or count < 1:
        raise ValueError(f"{len(dates)} dates and a count of {count}: at least one of each is needed")
    calendar = calendar_of(dates) if calendar == "auto" else calendar
    if calendar not in CALENDARS:
        raise ConfigError(f"data.trading_days is {calendar!r}: choose auto, {', '.join(CALENDARS)}")
    last = dates[-1].astype("datetime64[D]")
    offsets = np.arange(1, count + 1)
    if calendar == "daily":
        return np.asarray(last + offsets)
    # The holidays of a period that holds at least `count` trading days, and of two weeks more.
    end = last + np.timedelta64(2 * count + 14, "D")
    holidays = nyse_holidays(last, end) if calendar == "nyse" else np.array([], dtype="datetime64[D]")
    return np.asarray(np.busday_offset(last, offsets, roll="backward", holidays=holidays))


def calendar_of(dates: Days) -> str:
    """Return the calendar that `dates` ([n], oldest first) appear to follow.

    `daily` if the last year holds at least half of its Saturdays and half of its Sundays. `nyse` if the last two
    years hold at least `FEWEST_ROWS` days, none of them on a weekend or a holiday of the New York Stock Exchange, and
    lack at most `UNSCHEDULED` other weekdays. Otherwise `weekdays`.
    """
    dates = dates.astype("datetime64[D]")
    last = dates[-1]
    year, two_years = (dates[dates > last - np.timedelta64(days, "D")] for days in (365, 730))
    if all(_share_of(year, mask) >= 0.5 for mask in ("Sat", "Sun")):
        return "daily"
    holidays = nyse_holidays(two_years[0], last)
    trading = np.is_busday(two_years, holidays=holidays)
    expected = np.busday_count(two_years[0], last, holidays=holidays) + 1
    if len(two_years) >= FEWEST_ROWS and trading.all() and expected - len(two_years) <= UNSCHEDULED:
        return "nyse"
    return "weekdays"


def _share_of(dates: Days, weekday: str) -> float:
    """Return the share of the days named `weekday`, from first to last of `dates`, that `dates` holds; 0 if none."""
    count = np.count_nonzero(np.is_busday(dates, weekmask=weekday))
    return count / max(1, int(np.busday_count(dates[0], dates[-1] + 1, weekmask=weekday)))
