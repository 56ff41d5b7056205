"""The trading days after the last row of a data file, for which a forecast is made."""

import numpy as np
import pandas as pd
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

from pgat_fast.data.calendar_names import CALENDARS, WEEKDAYS, checked_name, weekdays_of
from pgat_fast.data.row_spacing import Days, next_months, next_weeks, spacing_of
from pgat_fast.errors import ConfigError

__all__ = ["CALENDARS", "FEWEST_ROWS", "UNSCHEDULED", "Days", "calendar_of", "future_trading_days", "nyse_holidays"]

UNSCHEDULED = 6
"""Number of unscheduled closures of the New York Stock Exchange to allow for in two years. There were four in September
2001, two for a storm in 2012, and one at the death of a president."""

FEWEST_ROWS = 120
"""Smallest number of rows to infer the exchange from: half a year, which has four to six holidays."""

FEWEST_ROWS_OF_WEEKDAYS = 15
"""Smallest number of rows to infer from which weekdays are traded, if not Monday to Friday: three weeks."""


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
        calendar: `nyse` (New York Stock Exchange), `weekdays` (Monday to Friday), `daily` (every day), a list of
            weekdays such as `Sun,Mon,Tue,Wed,Thu`, `weekly` or `monthly` (the same day of the following weeks or
            months), or `auto`, the result of `calendar_of(dates)`.

    Raises ConfigError for another calendar, ValueError if there are no dates or `count` is below 1.
    """
    if not len(dates) or count < 1:
        raise ValueError(f"{len(dates)} dates and a count of {count}: at least one of each is needed")
    try:
        calendar = calendar_of(dates) if calendar == "auto" else checked_name(calendar)
    except ValueError as error:
        raise ConfigError(f"data.trading_days is {calendar!r}: {error}") from error
    dates = dates.astype("datetime64[D]")
    if calendar in ("weekly", "monthly"):
        return next_weeks(dates, count) if calendar == "weekly" else next_months(dates, count)
    last = dates[-1]
    offsets = np.arange(1, count + 1)
    if calendar == "daily":
        return np.asarray(last + offsets)
    # The holidays of a period that holds at least `count` trading days, and of two weeks more.
    end = last + np.timedelta64(2 * count + 14, "D")
    holidays = nyse_holidays(last, end) if calendar == "nyse" else np.array([], dtype="datetime64[D]")
    weekmask = " ".join(weekdays_of(calendar) or WEEKDAYS[:5])
    return np.asarray(np.busday_offset(last, offsets, roll="backward", weekmask=weekmask, holidays=holidays))


def calendar_of(dates: Days) -> str:
    """Return the calendar that `dates` ([n], oldest first) appear to follow.

    `weekly` or `monthly` if that is their spacing. Otherwise the last year decides, by the weekdays of which it holds
    at least half: `daily` if these are all seven; their names, such as `Mon,Tue,Wed,Thu,Sun`, if they are not Monday to
    Friday and there are `FEWEST_ROWS_OF_WEEKDAYS` rows. `nyse` if the last two years hold at least `FEWEST_ROWS` days,
    none of them on a weekend or a holiday of the New York Stock Exchange, and lack at most `UNSCHEDULED` other
    weekdays. Otherwise `weekdays`.
    """
    dates = dates.astype("datetime64[D]")
    spacing = spacing_of(dates)
    if spacing in ("weekly", "monthly"):
        return spacing
    last = dates[-1]
    year, two_years = (dates[dates > last - np.timedelta64(days, "D")] for days in (365, 730))
    shares = weekday_shares(year)
    of_every_weekday = min(shares.values()) >= 0.5 or len(year) < FEWEST_ROWS_OF_WEEKDAYS
    if shares["Sat"] >= 0.5 and shares["Sun"] >= 0.5 and of_every_weekday:
        return "daily"
    weekdays = tuple(day for day, share in shares.items() if share >= 0.5)
    if len(year) >= FEWEST_ROWS_OF_WEEKDAYS and weekdays and weekdays != WEEKDAYS[:5]:
        return ",".join(weekdays)
    if is_nyse(two_years):
        return "nyse"
    return "weekdays"


def is_nyse(dates: Days) -> bool:
    """Return whether `dates` are sessions of the New York Stock Exchange, but for `UNSCHEDULED` missing ones."""
    holidays = nyse_holidays(dates[0], dates[-1])
    trading = np.is_busday(dates, holidays=holidays)
    expected = np.busday_count(dates[0], dates[-1], holidays=holidays) + 1
    return bool(len(dates) >= FEWEST_ROWS and trading.all() and expected - len(dates) <= UNSCHEDULED)


def weekday_shares(dates: Days) -> dict[str, float]:
    """Return for each weekday the share of its days, from first to last of `dates`, that `dates` holds; 0 if none."""
    shares: dict[str, float] = {}
    for weekday in WEEKDAYS:
        count = np.count_nonzero(np.is_busday(dates, weekmask=weekday))
        shares[weekday] = float(count) / max(1, int(np.busday_count(dates[0], dates[-1] + 1, weekmask=weekday)))
    return shares
