"""Daily prices: the S&P 500 history inside `great-tables`, or a CSV file of the user.

Both are returned as a frame with the index `date` (calendar days without time zone, strictly increasing) and
the float64 columns `open`, `high`, `low`, `close`. Nothing is repaired or guessed: a value that cannot be read
with certainty is rejected with its line number. Prices are subject to the rights of their source.
"""

import logging
import re
from collections.abc import Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from pgat_fast.data.csv_file import UnreadableFileError, decode, ends_with_line_break, is_blank, read_records
from pgat_fast.errors import DataError
from pgat_fast.utils.io import read_regular_file

PRICES = ("open", "high", "low", "close")

_log = logging.getLogger(__name__)

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = (
    r"(?P<m>jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?"
    r"|nov(ember)?|dec(ember)?)\.?"
)
_TIME = r"([T ]\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?\s*(Z|UTC|[+-]\d{2}:?\d{2})?)?"
_DATE_FORMS = [
    re.compile(form, re.ASCII | re.IGNORECASE)
    for form in (
        r"(?P<y>\d{4})(?P<separator>[-/.])(?P<m>\d{1,2})(?P=separator)(?P<d>\d{1,2})" + _TIME,
        r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})",
        r"(?P<d>\d{1,2})[- ]" + _MONTH + r"[-, ]+(?P<y>\d{4})",
        _MONTH + r"[- ](?P<d>\d{1,2})[-, ]+(?P<y>\d{4})",
    )
]
_DAY_OR_MONTH_FIRST = re.compile(r"\d{1,2}[-/. ]\d{1,2}[-/. ]\d{2,4}.*", re.ASCII)


class _PriceFile(NamedTuple):
    """A CSV file as text: the column names, rows with one field per column, and their 1-based line numbers."""

    name: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]


def sp500_prices() -> pd.DataFrame:
    """Return the S&P 500 index on 16,607 trading days, 1950-01-03 to 2015-12-31.

    Until 1961 the four prices of a day are equal, and on 84 % of the days from 1962 to 2005 the open equals
    the previous close: the source has no true opening prices for these days.

    Raises `DataError` if `great-tables`, which contains the data file, is not installed.
    """
    # Located, not imported: the import takes half a second and is not needed.
    package = find_spec("great_tables")
    folders = (package.submodule_search_locations if package else None) or ()
    files = [file for folder in folders for file in Path(folder, "data").glob("*-sp500.csv")]
    if len(files) != 1:
        raise DataError(
            'the S&P 500 history is a file of the package great-tables: pip install "pgat-fast[data]", '
            "or name a CSV file of prices of your own"
        )
    return _read_prices(files[0], warn_backwards=False)


def read_prices(path: str | Path) -> pd.DataFrame:
    """Read daily prices from the CSV file at `path`, and check every row.

    The first line names the columns: `date`, `open`, `high`, `low`, `close` in any order and case; others
    (`volume`, `adj close`) are ignored. Dates are ISO (`2015-12-31`; a time of day after it is dropped, the
    day stays as written), another form with the year first (`2015/12/31`, `20151231`) or one with the English
    name of the month (`31-Dec-2015`, `Dec 31, 2015`). A form such as 01/02/2015 is rejected, because day and
    month cannot be told apart. Rows may run from newest to oldest, as many vendors ship them: they are reversed
    and a warning is logged.

    Raises `DataError` for a file that cannot be read or is not CSV text; missing or repeated columns; a line
    with more or fewer fields than the header; dates that are unreadable, repeated or out of order; prices
    that are not numbers, not finite or not positive; a high or low that is not the highest or lowest price of
    its day.
    """
    return _read_prices(Path(path), warn_backwards=True)


def check_prices(prices: pd.DataFrame, name: str, lines: Sequence[int] | None = None) -> None:
    """Raise `DataError` unless `prices` is a frame as this module's functions return.

    The message names the frame `name`, and row i by `line lines[i]`, or by its date if `lines` is None.
    """
    missing = [column for column in PRICES if column not in prices.columns]
    if missing:
        raise DataError(f"{name}: no column {', '.join(missing)}: pass what `read_prices` returns")
    days = prices.index
    if not isinstance(days, pd.DatetimeIndex) or days.tz is not None or not days.equals(days.normalize()):
        raise DataError(f"{name}: the index does not hold calendar days: pass what `read_prices` returns")
    if days.hasnans or not (days.is_monotonic_increasing and days.is_unique):
        raise DataError(f"{name}: the dates are not strictly increasing: sort the rows and drop repeated days")
    bars = prices[list(PRICES)].to_numpy(np.float64)
    high, low = bars[:, 1], bars[:, 2]

    def refuse(wrong: npt.NDArray[np.bool_], column: str, what: str) -> None:
        if not wrong.any():
            return
        first, remaining = int(np.argmax(wrong)), int(wrong.sum()) - 1
        row = f"line {lines[first]}" if lines is not None else f"{days[first]:%Y-%m-%d}"
        values = ", ".join(f"{key} {value:.10g}" for key, value in zip(PRICES, bars[first], strict=True))
        suffix = f", and {remaining} more such row{'s' if remaining > 1 else ''}" if remaining else ""
        raise DataError(f"{name}, {row}, column {column}: {what} ({values}){suffix}: correct or remove the row")

    for column, values in zip(PRICES, bars.T, strict=True):
        refuse(~np.isfinite(values), column, "the price is not a finite number")
        refuse(values <= 0, column, "the price is not positive")
    refuse(high < bars.max(axis=1), "high", "the high is below another price of the day")
    refuse(low > bars.min(axis=1), "low", "the low is above another price of the day")


def _read_prices(path: Path, warn_backwards: bool) -> pd.DataFrame:
    """Read the file at `path`: text, rows, days and prices, order, checks."""
    file = _read_rows(path)
    position = _find_columns(file)
    days, bars = [], []
    for row, line in zip(file.rows, file.lines, strict=True):
        location = f"{path}, line {line}, column"
        days.append(_parse_date(row[position["date"]].strip(), f"{location} date"))
        bars.append([_parse_price(row[position[price]].strip(), f"{location} {price}") for price in PRICES])
    index = pd.DatetimeIndex(np.array(days, dtype="datetime64[D]").astype("datetime64[s]"), name="date")
    prices, lines = pd.DataFrame(bars, index=index, columns=list(PRICES), dtype=np.float64), file.lines
    if _runs_backwards(days, file):
        prices, lines = prices[::-1], lines[::-1]
        if warn_backwards:
            _log.warning("%s runs from the newest day to the oldest: its rows are taken in reverse", path)
    check_prices(prices, str(path), lines)
    return prices


def _read_rows(path: Path) -> _PriceFile:
    file = _PriceFile(str(path), [], [], [])
    try:
        text = decode(read_regular_file(path, "name a CSV file of prices"))
        if not ends_with_line_break(text):
            _log.warning("%s does not end with a line break: if it was cut off, its last number is wrong", path)
        for line, last_line, fields in read_records(text):
            location = f"{path}, line {line}"
            if last_line > line:
                raise DataError(f"{location}: a quotation mark opens here and closes on line {last_line}: remove it")
            if is_blank(fields):
                continue
            if not file.header:
                file.header.extend(fields)
                _check_separator(file)
            elif len(fields) != len(file.header):
                count = f"{len(fields)} fields where the header has {len(file.header)}"
                raise DataError(f"{location}: {count}, so a value may stand in the wrong column: correct the line")
            else:
                file.rows.append(fields)
                file.lines.append(line)
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
    except UnreadableFileError as error:
        location = "" if error.problem.row is None else f", line {error.problem.row}"
        raise DataError(f"{path}{location}: {error}") from error
    if not file.rows:
        raise DataError(f"{path}: no rows of prices after the header: {file.header}")
    return file


def _check_separator(file: _PriceFile) -> None:
    """Reject a header with separators other than commas, before its rows are rejected for their length."""
    separator = next((mark for mark in (";", "\t", "|") if mark in file.header[0]), None)
    if len(file.header) == 1 and separator:
        raise DataError(
            f"{file.name}, line 1: fields are separated by {separator!r}: save with commas between fields and points "
            f"in numbers (the first line is {file.header[0]!r})"
        )


def _find_columns(file: _PriceFile) -> dict[str, int]:
    """Return the position of `date` and of each of `PRICES` in the rows."""
    names = [name.strip().casefold() for name in file.header]
    suffix = f" and {len(names) - 10} more" if len(names) > 10 else ""
    header = f"the first line has {', '.join(repr(name) for name in file.header[:10])}{suffix}"
    required = ("date", *PRICES)
    for problem, count in (("no", 0), ("more than one", 2)):
        columns = [name for name in required if min(names.count(name), 2) == count]
        if columns and "log_close" in names:
            raise DataError(f"{file.name}: this is a data file that was built already: name the file of prices")
        if columns:
            raise DataError(
                f"{file.name}: {problem} column {', '.join(columns)}: {header}; name the columns {', '.join(required)}"
            )
    return {name: names.index(name) for name in required}


def _parse_date(text: str, where: str) -> date:
    match = next((match for form in _DATE_FORMS if (match := form.fullmatch(text))), None)
    if match is None:
        if _DAY_OR_MONTH_FIRST.fullmatch(text):
            raise DataError(
                f"{where}: {text!r} does not show whether day or month comes first: write dates as YYYY-MM-DD"
            )
        raise DataError(f"{where}: {text!r} is not a date: write dates as YYYY-MM-DD")
    month = match["m"].lower()
    number = int(month) if month.isdigit() else _MONTHS.index(month[:3]) + 1
    try:
        return date(int(match["y"]), number, int(match["d"]))
    except ValueError as error:
        raise DataError(f"{where}: {text!r} is no day of the calendar ({error}): correct it") from error


def _parse_price(text: str, where: str) -> float:
    if not _NUMBER.fullmatch(text):
        reason = f"{text!r} is not a number" if text else "the price is missing"
        raise DataError(f"{where}: {reason}: write plain numbers such as 1234.5, or remove the row")
    return float(text)


def _runs_backwards(days: list[date], file: _PriceFile) -> bool:
    """Return whether the newest day comes first. Raises DataError if a day is repeated or out of order."""
    first_line: dict[date, int] = {}
    for day, line in zip(days, file.lines, strict=True):
        if day in first_line:
            location = f"{file.name}, line {line}, column date"
            raise DataError(f"{location}: {day} is on line {first_line[day]} already: keep one of the two")
        first_line[day] = line
    backwards = len(days) > 1 and days[1] < days[0]
    for i in range(1, len(days)):
        if (days[i] < days[i - 1]) != backwards:
            direction = "newest to oldest" if backwards else "oldest to newest"
            location = f"{file.name}, line {file.lines[i]}, column date"
            raise DataError(
                f"{location}: {days[i]} follows {days[i - 1]}, but the rows begin {direction}: sort them by date"
            )
    return backwards
