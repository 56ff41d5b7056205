"""Dates and time stamps as people write them, read for a whole file: one form for all rows, none guessed."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from pgat_fast.errors import DataError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<m>jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?"
    r"|nov(ember)?|dec(ember)?)\.?"
)
_WEEKDAY = r"((mon|tues?|wed(nes)?|thu(rs)?|fri|sat(ur)?|sun)(day)?\.?,?\s+)?"
_ZONE = r"(Z|UTC|GMT|[A-Z]{3,4}|(UTC|GMT)?[+-]\d{2}:?\d{2})"
_TIME = rf"((T|,?\s+)(?P<hour>\d{{1,2}}):(?P<minute>\d{{2}})(:\d{{2}}([.,]\d+)?)?(\s*(?P<half>[ap]m))?\s*{_ZONE}?)?"
_CALENDAR_FORMS = [
    re.compile(_WEEKDAY + form + _TIME, re.ASCII | re.IGNORECASE)
    for form in (
        r"(?P<y>\d{4})(?P<separator>[-/.])(?P<m>\d{1,2})(?P=separator)(?P<d>\d{1,2})",
        r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})",
        r"(?P<d>\d{1,2})[-. ]+" + _MONTH + r"[-, ]+(?P<y>\d{4})",
        _MONTH + r"[- ](?P<d>\d{1,2})[-, ]+(?P<y>\d{4})",
    )
]
_DAY_AND_MONTH = re.compile(
    r"(?P<a>\d{1,2})(?P<separator>[-/. ])(?P<b>\d{1,2})(?P=separator)(?P<y>\d{4})" + _TIME, re.ASCII | re.IGNORECASE
)
_DAY_OR_MONTH_FIRST = re.compile(r"\d{1,2}[-/. ]\d{1,2}[-/. ]\d{2,4}.*", re.ASCII)
_EPOCH = re.compile(r"\d{9,19}(\.0*)?", re.ASCII)
_UNITS = {"s": (9, 10), "ms": (12, 13), "us": (15, 16), "ns": (18, 19)}
"""Units of a time since 1970, and the number of digits that it has in them from 1973 (2001 with the last) to 2286."""
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

_COMPACT = 12
"""Number of digits of a date and a time of day without marks."""
_LONGEST = 80
"""Number of characters of a cell that are read as a date."""


class Stamps(NamedTuple):
    """The dates of n rows."""

    days: list[date]
    """[n], as written; those of times since 1970 in UTC."""
    times: list[time | None]
    """[n], the times of day; None where there is none."""
    described: str = ""
    """The form in words, if it was found out from the whole file or counts from 1970."""


def parse_dates(texts: Sequence[str], locate: Callable[[int], str], date_format: str | None = None) -> Stamps:
    """Read the dates of all rows.

    Without `date_format` these forms are read: the year first (`2015-12-31`, `20151231`), the English name of the month
    (`31-Dec-2015`), times since 1970, and day/month/year or month/day/year if a day above 12 shows which of them it is.
    A time of day and a time zone may follow. `date_format` is a format of `datetime.strptime`, or `s`, `ms`, `us` or
    `ns` for times since 1970.

    Raises DataError at the first cell that is no date, or if day and month cannot be told apart. `locate(i)` is the
    place of cell i for the message.
    """
    if date_format in _UNITS:
        return _parse_epoch(texts, locate, date_format)
    if date_format is not None:
        return _parse_formatted(texts, locate, date_format)
    # What is longer is no date: no form ends with three points.
    texts = [text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..." for text in texts]
    first = texts[0] if texts else ""
    if _DAY_AND_MONTH.fullmatch(first):
        return _parse_day_and_month(texts, locate)
    digits = len(first.partition(".")[0])
    unit = next((unit for unit, lengths in _UNITS.items() if digits in lengths), None)
    if _EPOCH.fullmatch(first) and unit:
        if digits == _COMPACT and all(_is_compact(text) for text in texts):
            advice = "give --date-format ms or %Y%m%d%H%M"
            raise DataError(
                f"{locate(0)}: {first!r} is a time in milliseconds since 1970, or a date with a time of day: {advice}"
            )
        return _parse_epoch(texts, locate, unit)
    stamps = [_parse_calendar(text, locate, i) for i, text in enumerate(texts)]
    return Stamps([day for day, _ in stamps], [clock for _, clock in stamps])


def _is_compact(text: str) -> bool:
    """Return whether `text` can be a date and a time of day without marks, such as 202001020930."""
    try:
        return 1900 <= datetime.strptime(text, "%Y%m%d%H%M").year < 2200
    except ValueError:
        return False


def is_date(text: str) -> bool:
    """Return whether `text` looks like a date in some form."""
    forms = (*_CALENDAR_FORMS, _DAY_OR_MONTH_FIRST, _EPOCH)
    return any(form.fullmatch(text[:_LONGEST].strip()) for form in forms)


def _parse_calendar(text: str, locate: Callable[[int], str], i: int) -> tuple[date, time | None]:
    match = next((match for form in _CALENDAR_FORMS if (match := form.fullmatch(text))), None)
    if match is None:
        if _DAY_OR_MONTH_FIRST.fullmatch(text):
            raise _undecided(text, locate(i))
        raise _not_a_date(text, locate(i))
    month = match["m"].lower()
    number = int(month) if month.isdigit() else _MONTHS.index(month[:3]) + 1
    return _day_of(text, locate, i, int(match["y"]), number, int(match["d"])), _time_of(match, locate(i))


def _parse_day_and_month(texts: Sequence[str], locate: Callable[[int], str]) -> Stamps:
    matches = []
    for i, text in enumerate(texts):
        match = _DAY_AND_MONTH.fullmatch(text)
        if match is None:
            raise _not_a_date(text, locate(i), f"as the first one, {texts[0]!r}, is written")
        matches.append(match)
    day_first, month_first = (
        next((i for i, match in enumerate(matches) if int(match[group]) > 12), None) for group in "ab"
    )
    if day_first is not None and month_first is not None:
        raise DataError(
            f"{locate(max(day_first, month_first))}: {texts[day_first]!r} has the day first and {texts[month_first]!r} "
            "the month: write all dates alike"
        )
    if day_first is None and month_first is None:
        raise _undecided(texts[0], locate(0), ", as no day of the file is above 12")
    a, b = ("d", "m") if day_first is not None else ("m", "d")
    days = []
    for i, match in enumerate(matches):
        parts = {a: int(match["a"]), b: int(match["b"])}
        days.append(_day_of(texts[i], locate, i, int(match["y"]), parts["m"], parts["d"]))
    described = "dates day/month/year" if a == "d" else "dates month/day/year"
    return Stamps(days, [_time_of(match, locate(i)) for i, match in enumerate(matches)], described)


def _parse_epoch(texts: Sequence[str], locate: Callable[[int], str], unit: str) -> Stamps:
    days: list[date] = []
    times: list[time | None] = []
    start = datetime(1970, 1, 1, tzinfo=UTC)
    for i, text in enumerate(texts):
        if not re.fullmatch(r"-?\d{1,19}(\.\d*)?", text, re.ASCII):
            raise _not_a_date(text, locate(i), f"in {_UNIT_NAMES[unit]} since 1970")
        count = int(text.partition(".")[0])
        try:
            stamp = start + timedelta(microseconds=count * 10**6 // _PER_SECOND[unit])
        except OverflowError as error:
            raise _not_a_date(text, locate(i), f"in {_UNIT_NAMES[unit]} since 1970") from error
        days.append(stamp.date())
        times.append(stamp.time())
    odd = next((i for i, day in enumerate(days) if not 1900 <= day.year < 2200), None)
    if odd is not None:
        message = f"{texts[odd]!r} is {days[odd]} in {_UNIT_NAMES[unit]} since 1970"
        raise DataError(f"{locate(odd)}: {message}: correct it, or give --date-format s, ms, us or ns")
    midnight = all(clock == time() for clock in times)
    return Stamps(days, [None] * len(days) if midnight else times, f"dates in {_UNIT_NAMES[unit]} since 1970")


def _parse_formatted(texts: Sequence[str], locate: Callable[[int], str], date_format: str) -> Stamps:
    days: list[date] = []
    times: list[time | None] = []
    has_time = any(code in date_format for code in ("%H", "%I", "%c", "%X", "%T"))
    for i, text in enumerate(texts):
        try:
            stamp = datetime.strptime(text, date_format)
        except (ValueError, re.error) as error:
            advice = "give --date-format as for Python's strptime, such as %d/%m/%Y, or s, ms, us or ns"
            raise DataError(f"{locate(i)}: {error}: {advice}") from error
        days.append(stamp.date())
        times.append(stamp.time() if has_time else None)
    return Stamps(days, times)


def _day_of(text: str, locate: Callable[[int], str], i: int, year: int, month: int, day: int) -> date:
    try:
        return date(year, month, day)
    except ValueError as error:
        raise DataError(f"{locate(i)}: {text!r} is no day of the calendar ({error}): correct it") from error


def _time_of(match: re.Match[str], where: str) -> time | None:
    if match["hour"] is None:
        return None
    hour, minute = int(match["hour"]), int(match["minute"])
    if minute > 59 or hour > 24 or (hour == 24 and minute) or (match["half"] and not 1 <= hour <= 12):
        raise DataError(f"{where}: {match[0]!r} holds no time of a day: correct it, or give --date-format")
    if match["half"]:
        hour = hour % 12 + (12 if match["half"].lower() == "pm" else 0)
    return time(hour % 24, minute)


def _undecided(text: str, where: str, reason: str = "") -> DataError:
    year = "%Y" if re.match(r"\d+\D\d+\D\d{4}", text, re.ASCII) else "%y"
    return DataError(
        f"{where}: {text!r} does not show whether day or month comes first{reason}: write dates as YYYY-MM-DD, or give "
        f"--date-format %d/%m/{year} or %m/%d/{year}, with the marks of the file"
    )


def _not_a_date(text: str, where: str, form: str = "") -> DataError:
    suffix = f" {form}" if form else ""
    advice = "write dates as YYYY-MM-DD, or give --date-format as for strptime, such as %d-%b-%y for 31-Dec-15"
    if re.fullmatch(r"[2-5]\d{4}(\.\d+)?", text, re.ASCII):
        advice = "a spreadsheet counts days like this: give the column the format of a date and save again"
    return DataError(f"{where}: {text!r} is not a date{suffix}: {advice}")


def days_of_local_midnights(stamps: Stamps) -> tuple[list[date], str]:
    """Return the days that time stamps stand for, and in words what was done; nothing for stamps that are days already.

    Bars of a day are often stamped with the midnight at which the day began where the exchange is, and written in
    another zone: 23:00 on Sunday for a Monday in Europe. All stamps then have the same late time of day (or two, an
    hour apart, with summer time), and there are Sundays but no Fridays (Saturdays but no Thursdays, for an exchange
    that trades from Sunday to Thursday). Each row is then dated on the next day.
    Stamps of an exchange that trades on Sundays have times before 15:00 in UTC, when it closes.
    """
    times = [clock for clock in stamps.times if clock is not None]
    days = stamps.days
    if not days or len(times) < len(days):
        return days, ""
    clocks = sorted({clock.replace(second=0, microsecond=0) for clock in times})
    minutes = [60 * clock.hour + clock.minute for clock in clocks]
    whole = all(minute % 15 == 0 for minute in minutes) and not any(clock.second for clock in times)
    if not whole or minutes[0] < 15 * 60 or minutes[-1] - minutes[0] > 60 or len(clocks) > 2:
        return days, ""
    share = [sum(day.weekday() == weekday for day in days) / len(days) for weekday in range(7)]
    is_rare = [value < 0.02 for value in share]
    next_days = [day + timedelta(days=1) for day in days]
    monday_to_friday = share[6] >= 0.1 and is_rare[4] and is_rare[5]
    sunday_to_thursday = share[5] >= 0.1 and is_rare[3] and is_rare[4]
    if not (monday_to_friday or sunday_to_thursday):
        return days, ""
    stamped = "Sundays to Thursdays" if monday_to_friday else "Saturdays to Wednesdays"
    written = " and ".join(f"{clock:%H:%M}" for clock in clocks)
    return (
        next_days,
        f"stamps at {written}, from {stamped}, are taken for local midnights written in another zone: each row is "
        "dated on the next day",
    )


def runs_backwards(days: Sequence[date], times: Sequence[time | None], name: str, place: Callable[[int], str]) -> bool:
    """Return whether the newest day comes first.

    Raises DataError if a day is repeated or out of order; the message starts with `name` and names row i `place(i)`.
    """
    first_row: dict[date, int] = {}
    for i, day in enumerate(days):
        if day in first_row:
            first = first_row[day]
            advice = "keep one of the two"
            if times[i] != times[first]:
                advice = f"at {times[first]}, and at {times[i]} here: combine the rows within a day to one row a day"
            raise DataError(f"{name}, {place(i)}, column date: {day} is on {place(first)} already: {advice}")
        first_row[day] = i
    backwards = len(days) > 1 and days[1] < days[0]
    for i in range(1, len(days)):
        if (days[i] < days[i - 1]) != backwards:
            direction = "newest to oldest" if backwards else "oldest to newest"
            message = f"{days[i]} follows {days[i - 1]}, but the rows begin {direction}: sort them by date"
            raise DataError(f"{name}, {place(i)}, column date: {message}")
    return backwards
