"""Daily prices: the S&P 500 history inside `great-tables`, a file of the user, or a frame.

All are returned as a frame with the index `date` (calendar days without time zone, strictly increasing) and the float64
columns `open`, `high`, `low`, `close`. Nothing is repaired but rounding noise (`bars.BAR_TOLERANCE`), and nothing is
guessed: a value that cannot be read with certainty is rejected with its line number. Prices are subject to the rights
of their source.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pgat_fast.data.bars import FLOAT32_NOISE, MendedBars, describe_mended, mend_bars, tell_apart
from pgat_fast.data.csv_file import FloatArray, UnreadableFileError, ends_with_line_break, shorten
from pgat_fast.data.file_text import text_of
from pgat_fast.data.price_columns import PRICES
from pgat_fast.data.price_dates import Stamps, days_of_local_midnights, parse_dates, runs_backwards
from pgat_fast.data.price_format import PriceOptions, PriceRows, read_rows
from pgat_fast.data.price_numbers import NumberForm, UndecidedNumberError, number_form, parse_number
from pgat_fast.errors import DataError
from pgat_fast.utils.io import read_regular_file

__all__ = ["PRICES", "read_prices", "sp500_prices"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remarks:
    """What a reader of prices has logged."""

    notes: list[str] = field(default_factory=list)
    """What the file was taken for and what was mended, a line each."""
    warnings: list[str] = field(default_factory=list)
    """What is probably a fault of the source."""

    def note(self, line: str) -> None:
        """Log `line` as information."""
        _log.info("%s", line)
        self.notes.append(line)

    def warn(self, line: str) -> None:
        """Log `line` as a warning."""
        _log.warning("%s", line)
        self.warnings.append(line)


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
    return _read_prices(files[0], PriceOptions(), Remarks(), warn_backwards=False)


def read_prices(path: str | Path, options: PriceOptions | None = None, remarks: Remarks | None = None) -> pd.DataFrame:
    """Read daily prices from the text file at `path`, and check every row.

    The file may be packed (gzip, zip with one file, bzip2, xz), in UTF-8, UTF-16 or a Western European code page, have
    lines above the header, and separate its fields by commas, semicolons, tabs or bars. A line names the columns: date,
    open, high, low, close in any order and case, also as `1. open` or `AAPL.Open`; others (`volume`, `adj close`) are
    ignored. Dates are those of `price_dates.parse_dates`; a time of day after them is dropped and the day stays as
    written, unless all stamps are local midnights written in another zone. Numbers have a decimal point or comma,
    perhaps thousands separators and currency signs. Rows may run from newest to oldest, as many vendors ship them: they
    are reversed and a warning is logged. Whatever differs from a plain CSV file is logged in one line.

    What has two readings is rejected: 01/02/2015 where no day of the file is above 12, and 1.234 where no other number
    shows the decimal mark and the fields are not separated by commas. `options` decides these. The lines of the log are
    also added to `remarks`.

    Raises `DataError` for a file that cannot be read or is not text; missing or repeated columns; a line
    with more or fewer fields than the header; dates that are unreadable, repeated or out of order; prices
    that are not numbers, not finite or not positive; a high or low that is not the highest or lowest price of
    its day, by more than rounding noise.
    """
    return _read_prices(Path(path), options or PriceOptions(), remarks or Remarks(), warn_backwards=True)


def prices_of_rows(
    stamps: Stamps,
    bars: FloatArray,
    name: str,
    remarks: Remarks,
    described: Iterable[str],
    rows: Sequence[str] = (),
    warn_backwards: bool = True,
) -> pd.DataFrame:
    """Return the checked frame of the n rows of a source, oldest first, with rounding noise mended; log what was done.

    Args:
        stamps: dates of the rows.
        bars: open, high, low, close, [n, 4].
        name: the source, for messages.
        remarks: the lines of the log are added to it.
        described: what the source was taken for, in words; empty texts do not count.
        rows: names of the rows for messages, [n]; by default their numbers and days.
        warn_backwards: whether to log that the rows run from the newest to the oldest.

    Raises DataError for days that are repeated or out of order, and prices that `read_prices` rejects.
    """
    days, shifted = days_of_local_midnights(stamps)
    if shifted:
        remarks.warn(f"{name}: {shifted}")
    known = "; ".join(filter(None, described))
    if known:
        remarks.note(f"{name}: read as {known}")
    if runs_backwards(days, stamps.times, name, lambda i: rows[i] if rows else f"row {i}"):
        days, bars, rows = days[::-1], bars[::-1], rows[::-1]
        if warn_backwards:
            _log.warning("%s runs from the newest day to the oldest: its rows are taken in reverse", name)
    rows = rows or list(map(str, days))
    mended = mend_bars(bars)
    _check_bars(bars, mended, name, rows)
    line = describe_mended(mended, rows.__getitem__)
    if line:
        write = remarks.warn if mended.largest > FLOAT32_NOISE else remarks.note
        write(f"{name}: {line}")
    index = pd.DatetimeIndex(np.array(days, dtype="datetime64[D]").astype("datetime64[s]"), name="date")
    return pd.DataFrame(mended.bars, index=index, columns=list(PRICES), dtype=np.float64)


def _check_bars(bars: FloatArray, mended: MendedBars, name: str, names: Sequence[str]) -> None:
    """Raise `DataError` unless all prices are finite and positive, and high and low are the highest and lowest."""

    def refuse(rows: npt.NDArray[np.int64], column: str, what: str, advice: str = "") -> None:
        if not len(rows):
            return
        first, remaining = int(rows[0]), len(rows) - 1
        values = ", ".join(f"{key} {value}" for key, value in zip(PRICES, tell_apart(bars[first]), strict=True))
        suffix = f", and {remaining} more such row{'s' if remaining > 1 else ''}" if remaining else ""
        where = f"{name}, {names[first]}, column {column}"
        raise DataError(f"{where}: {what} ({values}){suffix}: correct or remove the row{advice}")

    for column, values in zip(PRICES, bars.T, strict=True):
        refuse(np.flatnonzero(~np.isfinite(values)), column, "the price is not a finite number")
        refuse(np.flatnonzero(values <= 0), column, "the price is not positive")
    advice = ", or round all four prices alike"
    for rows, column, what in (
        (mended.high_faults, "high", "the high is below another price of the day"),
        (mended.low_faults, "low", "the low is above another price of the day"),
    ):
        gaps = np.maximum(bars.max(axis=1) - bars[:, 1], bars[:, 2] - bars.min(axis=1))[rows]
        refuse(rows, column, what, advice if len(gaps) and gaps.max() < 0.0101 else "")


def _read_prices(path: Path, options: PriceOptions, remarks: Remarks, warn_backwards: bool) -> pd.DataFrame:
    """Read the file at `path`: bytes, text, rows, days and prices, order, checks."""
    try:
        text, forms = text_of(read_regular_file(path, "name a CSV file of prices"))
        if not ends_with_line_break(text):
            remarks.warn(f"{path} does not end with a line break: if it was cut off, its last number is wrong")
        file = read_rows(text, str(path), options)
    except OSError as error:
        raise DataError(f"{path}: {error}") from error
    except UnreadableFileError as error:
        location = "" if error.problem.row is None else f", line {error.problem.row}"
        raise DataError(f"{path}{location}: {error}") from error
    where = [f"{path}, line {line}, column" for line in file.lines]
    column = file.position["date"]
    stamps = parse_dates([row[column].strip() for row in file.rows], lambda i: f"{where[i]} date", options.date_format)
    numbers = _number_form(file, str(path), options)
    bars = np.array(
        [
            [_parse_price(row[file.position[price]], numbers.decimal, f"{where[i]} {price}") for price in PRICES]
            for i, row in enumerate(file.rows)
        ]
    )
    described = *forms, *file.described, stamps.described, *numbers.described
    rows = [f"line {line}" for line in file.lines]
    return prices_of_rows(stamps, bars, str(path), remarks, described, rows, warn_backwards)


def _number_form(file: PriceRows, name: str, options: PriceOptions) -> NumberForm:
    columns = {file.position[price] for price in PRICES}
    unread = [column for column in range(len(file.header)) if column not in {*columns, file.position["date"]}]
    prices = (row[column] for row in file.rows for column in columns)
    others = (row[column] for row in file.rows for column in unread)
    try:
        return number_form(prices, others, file.separator, options.decimal)
    except UndecidedNumberError as error:
        i, price = next(
            (
                (i, price)
                for i, row in enumerate(file.rows)
                for price in PRICES
                if error.cell in row[file.position[price]]
            ),
            (0, PRICES[0]),
        )
        raise DataError(f"{name}, line {file.lines[i]}, column {price}: {error}") from error


def _parse_price(text: str, decimal: str, where: str) -> float:
    value = parse_number(text.strip(), decimal)
    if value is None:
        reason = f"{shorten(text.strip())} is not a number" if text.strip() else "the price is missing"
        raise DataError(f"{where}: {reason}: write plain numbers such as 1234.5, or remove the row")
    return value
