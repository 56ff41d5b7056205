"""What the dates and prices of a history show before a model is trained on it or forecasts from it.

One function, `examine`, decides for all commands: rows that contradict a daily calendar are refused, with what to do,
and what is probably a fault of the source is a warning with its date.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pgat_fast.data.calendar_names import FULL_NAMES, WEEKDAYS, weekdays_of
from pgat_fast.data.csv_file import FloatArray
from pgat_fast.data.price_warnings import longest_run, price_warnings
from pgat_fast.data.row_spacing import Days, gaps_of, spacing_of
from pgat_fast.data.trading_days import FEWEST_ROWS_OF_WEEKDAYS, calendar_of, is_nyse
from pgat_fast.errors import DataError

LONGEST_GAPS = {"weekly": 35, "monthly": 100}
"""Longest gap in days without a warning, by calendar. Of days: 21; closures for holidays last up to 11 days."""

_SPARSE = 10
"""Number of consecutive gaps of five days or more that no exchange explains."""

_log = logging.getLogger(__name__)


class Findings(NamedTuple):
    """Result of `examine`."""

    calendar: str
    """Calendar that the rows follow: the given one, or the one that was found."""
    refusal: str = ""
    """Why the rows cannot be used with the calendar, and what to do; empty if they can."""
    warnings: tuple[str, ...] = ()


def examine(dates: Days, logs: FloatArray | None = None, calendar: str = "auto") -> Findings:
    """Compare the rows of a history with a trading calendar, and look for probable faults of the prices.

    Args:
        dates: the days of the rows, [n], increasing.
        logs: log prices of open, high, low, close up to a common constant, [n, 4]; None if there are no prices.
        calendar: a name as in `data.trading_days`; `auto` finds it out.
    """
    dates = dates.astype("datetime64[D]")
    refusal = _contradiction(dates, calendar)
    followed = calendar_of(dates) if calendar == "auto" else calendar
    if refusal:
        return Findings(followed, refusal)
    warnings = [*_weekday_warnings(dates, calendar, followed), *_gap_warnings(dates, followed)]
    if logs is not None:
        warnings += price_warnings(dates, logs)
    return Findings(followed, "", tuple(warnings))


def checked_calendar(
    name: str, dates: Days, logs: FloatArray | None = None, calendar: str = "auto", strict: bool = False
) -> str:
    """Return the calendar that the rows of `name` follow, and log the warnings of `examine`.

    Raises DataError if `examine` refuses the rows; with `strict` also for warnings.
    """
    findings = examine(dates, logs, calendar)
    raise_findings(name, findings, strict)
    for warning in findings.warnings:
        _log.warning("%s: %s", name, warning)
    return findings.calendar


def raise_findings(name: str, findings: Findings, strict: bool) -> None:
    """Raise DataError if the rows are refused, or with `strict` if there are warnings."""
    if findings.refusal:
        raise DataError(f"{name}: {findings.refusal}")
    if strict and findings.warnings:
        raise DataError(f"{name}: refused because of --strict: " + "; ".join(findings.warnings))


def _contradiction(dates: Days, calendar: str) -> str:
    """Return why the rows cannot follow `calendar`; nothing if they can."""
    spacing = spacing_of(dates)
    if spacing == calendar:
        return ""
    gaps = gaps_of(dates)
    if spacing != "daily":
        if weekdays_of(calendar) and set(_names(dates)) <= set(weekdays_of(calendar)):
            return ""  # the user lists these weekdays
        what = "neither daily nor weekly nor monthly" if spacing == "irregular" else f"{spacing}, not daily"
        example = f"the median gap is {np.median(gaps):g} days ({_list(dates)})"
        advice = "pass daily prices"
        if spacing in ("weekly", "monthly"):
            noun = {"weekly": "weeks", "monthly": "months"}[spacing]
            advice += f", or choose --trading-days {spacing} (data.trading_days) to train on {noun} and forecast {noun}"
        return f"the rows are {what}: {example}: {advice}"
    if calendar in ("weekly", "monthly"):
        return (
            f"the calendar is {calendar}, but the rows are daily ({_list(dates[-3:])}): pass {calendar} prices, or "
            "choose --trading-days auto (data.trading_days)"
        )
    first, last = longest_run(gaps >= 5)
    if last - first >= _SPARSE:
        return (
            f"{last - first} rows from {dates[first]} to {dates[last]} are five or more days apart ("
            f"{_list(dates[first : first + 4])}), while the other rows are daily: leave these rows out (--rows N "
            "keeps the last N)"
        )
    if calendar != "auto" or len(dates) < FEWEST_ROWS_OF_WEEKDAYS:
        return ""
    return _shifted(dates)


def _shifted(dates: Days) -> str:
    """Return why all dates are a day off, judging by weekdays and holidays; nothing if they may be right."""
    weekdays = calendar_of(dates)
    if weekdays == "Tue,Wed,Thu,Fri,Sat":
        return (
            f"the rows are Tuesdays to Saturdays, none is on a Monday ({_list(dates[-5:])}): the dates are a day "
            "late, as local times in a zone ahead of the exchange are; subtract a day from all dates, or choose "
            f"--trading-days {weekdays} if they are right"
        )
    if weekdays != "Mon,Tue,Wed,Thu,Sun":
        return ""
    reason = ""
    if is_nyse((dates + 1)[dates > dates[-1] - np.timedelta64(730, "D")]):
        reason = "the days before all holidays of the New York Stock Exchange are missing"
    closed = _holidays_of_markets(dates)
    if len(closed) >= 2 and not np.isin(closed, dates + 1).any():
        reason = reason or f"the days before {_list(closed)} are missing, when markets that trade on Fridays are closed"
    if not reason:
        return ""
    return (
        f"the rows are Sundays to Thursdays, none is on a Friday ({_list(dates[-5:])}), and {reason}: the dates are "
        "a day early, as local midnights written in UTC are; add a day to all dates, or choose --trading-days "
        "Sun,Mon,Tue,Wed,Thu if they are right"
    )


def _holidays_of_markets(dates: Days) -> Days:
    """Return each 25 December and 1 January, from Monday to Friday, within the dates a day later."""
    years = np.arange(dates[0].astype("datetime64[Y]"), dates[-1].astype("datetime64[Y]") + 2)
    days = np.sort(np.concatenate([years.astype("datetime64[D]"), years.astype("datetime64[D]") - 7]))
    return np.asarray(days[(days > dates[0]) & (days <= dates[-1]) & np.is_busday(days)])


def _weekday_warnings(dates: Days, calendar: str, followed: str) -> Iterator[str]:
    """Warn of weekdays that are unusual, or that the chosen calendar lacks."""
    if len(dates) < FEWEST_ROWS_OF_WEEKDAYS or followed in ("weekly", "monthly"):
        return
    year = dates[dates > dates[-1] - np.timedelta64(365, "D")]
    names = _names(year)
    usual = weekdays_of(followed) or (WEEKDAYS if followed == "daily" else WEEKDAYS[:5])
    other = year[~np.isin(names, usual)]
    if len(other) >= 3 and len(other) >= 0.02 * len(year):
        yield (
            f"{len(other)} rows of the last year are on {_weekdays(_names(other))} ({_list(other)}), which are no "
            f"days of the calendar {followed}: combine them with the next day, or choose --trading-days with these "
            "weekdays"
        )
    if calendar != "auto" or followed == "daily" or usual == WEEKDAYS[:5]:
        return
    if usual == (*WEEKDAYS[:4], "Sun"):
        yield (
            f"the rows are Sundays to Thursdays ({_list(year[-5:])}), and so are the forecasts: if these are local "
            "midnights written in UTC, all dates are a day early: add a day to them; choose --trading-days "
            "Sun,Mon,Tue,Wed,Thu if they are right"
        )
    elif usual == (*WEEKDAYS[:5], "Sun"):
        sundays = year[names == "Sun"]
        yield (
            f"{len(sundays)} rows of the last year are on Sundays beside Mondays to Fridays ({_list(sundays)}), and "
            "so are the forecasts: if they are short sessions of currencies, combine them with Mondays; choose "
            "--trading-days Sun,Mon,Tue,Wed,Thu,Fri if they are right"
        )
    else:
        absent = [day for day in WEEKDAYS if day not in usual]
        yield (
            f"the last year has few or no rows on {_weekdays(np.array(absent))} ({_list(year[-5:])}), and neither "
            f"have the forecasts: choose --trading-days {followed} if that is right"
        )


def _gap_warnings(dates: Days, calendar: str) -> Iterator[str]:
    gaps = gaps_of(dates)
    longest = LONGEST_GAPS.get(calendar, 21)
    places = np.flatnonzero(gaps > longest)
    if len(places):
        first = places[np.argmax(gaps[places])]
        suffix = f", and {len(places) - 1} more gaps of over {longest} days" if len(places) > 1 else ""
        yield f"a gap of {gaps[first]} days from {dates[first]} to {dates[first + 1]}{suffix}: add the missing rows"


def _names(dates: Days) -> np.ndarray:
    """Return the short name of the weekday of each date."""
    return np.array(WEEKDAYS)[(dates.astype(np.int64) + 3) % 7]


def _weekdays(names: np.ndarray) -> str:
    """Return the full names of weekdays, in the plural."""
    return " and ".join(f"{FULL_NAMES[WEEKDAYS.index(day)]}s" for day in WEEKDAYS if day in names)


def _list(dates: Days, shown: int = 3) -> str:
    """Return the first dates and their weekdays."""
    names = _names(dates[:shown])
    texts = [f"{name} {day}" for name, day in zip(names, dates[:shown], strict=True)]
    return ", ".join(texts) + (", ..." if len(dates) > shown else "")
