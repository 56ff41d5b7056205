"""Checks of a data file whose rows could be read: columns, dates, cells, impossible values.

Each function returns one Problem for each kind of fault (and column), with its first rows and a count.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import date
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from pgat_fast.data.columns import TARGETS
from pgat_fast.data.csv_file import DATE, CsvFile, FloatArray, IntArray, Problem, name_rows, shorten

Dates = NDArray[np.datetime64]

PAIR_TOLERANCE = 1e-3
"""Tolerance of sin^2 + cos^2 = 1: seven times the error of four decimals; scaled columns exceed it by far."""

BAR_TOLERANCE = 1.5e-6
"""Tolerance of the order of log prices: two roundings to six decimals (1e-6), and a margin."""

_SHOWN = 10
_DAY = re.compile(r"(\d{4}-\d\d-\d\d)([ T]00:00:00)?", re.ASCII)


def column_problems(header: Sequence[str], columns: Sequence[str], exact: bool = True) -> list[Problem]:
    """Compare the header with `date` and the wanted `columns`.

    With `exact`, the header must hold these and no others, in this order; otherwise it must contain them.
    """
    if len(header) == 1 and any(separator in header[0] for separator in ";\t|"):
        return [Problem(1, None, "the header has one field: separate the fields with commas, not ';', tab or '|'")]
    if DATE not in header and header and _parse_date(header[0]) is not None:
        return [Problem(1, None, "the first line holds data: the file needs a header line with the column names")]
    expected = dict.fromkeys([DATE, *columns])
    present = dict.fromkeys(header)
    missing = [name for name in expected if name not in present]
    extra = [name for name in present if name not in expected]
    if len(missing) > _SHOWN and {"open", "high", "low", "close"} <= {name.strip().casefold() for name in present}:
        message = "these are plain prices: `pgat-fast data build --prices FILE --out DATA` makes a data file of them"
        return [Problem(1, None, message)]
    problems = [Problem(1, name, f"is missing{_meant(name, extra)}") for name in missing[:_SHOWN]]
    problems += _count_rest(missing, "are missing")
    if exact:
        problems += [Problem(1, name, f"is not expected{_meant(name, missing)}: remove it") for name in extra[:_SHOWN]]
        problems += _count_rest(extra, "are not expected")
    problems += duplicate_columns(header, header if exact else expected)
    if exact:
        problems += _order_problems([n for n in present if n in expected], [n for n in expected if n in present])
    return problems


def duplicate_columns(header: Sequence[str], columns: Iterable[str]) -> list[Problem]:
    """Find `columns` that occur more than once in the header, or have no name."""
    counts = Counter(header)
    problems = [
        Problem(1, name, f"occurs {counts[name]} times in the header: keep one")
        for name in dict.fromkeys(columns)
        if counts[name] > 1
    ]
    if "" in columns:
        position = list(header).index("") + 1
        message = f"field {position} of the header has no name: an index, perhaps; write the file without it"
        problems.append(Problem(1, None, message))
    return problems


def _meant(name: str, candidates: Sequence[str]) -> str:
    # Bounded, because comparing all pairs of names of a malicious header would take minutes.
    names = [candidate for candidate in candidates[:200] if len(candidate) <= 80]
    close = get_close_matches(name, names, n=1, cutoff=0.7) if len(name) <= 80 else []
    if not close:
        folded = {candidate.strip().casefold(): candidate for candidate in reversed(names)}
        close = [folded[name.strip().casefold()]] if name.strip().casefold() in folded else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def _count_rest(names: Sequence[str], what: str) -> list[Problem]:
    return [Problem(1, None, f"{len(names) - _SHOWN} more columns {what}")] if len(names) > _SHOWN else []


def _order_problems(found: Sequence[str], wanted: Sequence[str]) -> list[Problem]:
    for name, expected in zip(found, wanted, strict=True):
        if name != expected:
            return [Problem(1, name, f"the columns are in the wrong order: {expected!r} belongs where {name!r} is")]
    return []


def parse_dates(file: CsvFile) -> tuple[Dates, list[Problem]]:
    """Read the dates ([n]; NaT if a cell holds none) and find those that are wrong, repeated or unsorted."""
    days = np.full(len(file.dates), np.datetime64("NaT"), dtype="datetime64[D]")
    invalid_rows = []
    for row, text in enumerate(file.dates):
        day = _parse_date(text)
        if day is None:
            invalid_rows.append(row)
        else:
            days[row] = day
    problems = []
    if invalid_rows:
        rows = name_rows(file.lines[invalid_rows])
        message = f"{shorten(file.dates[invalid_rows[0]])} is not a date ({rows}): write it like 2024-03-28"
        problems.append(Problem(int(file.lines[invalid_rows[0]]), DATE, message))
    valid = ~np.isnat(days)
    return days, problems + _order_of_dates(days[valid], file.lines[valid])


def _parse_date(text: str) -> date | None:
    """Return the day that `text` gives as YYYY-MM-DD, alone or with the time 00:00:00; None for anything else."""
    match = _DAY.fullmatch(text.strip())
    try:
        return date.fromisoformat(match[1]) if match else None
    except ValueError:
        return None


def _order_of_dates(days: Dates, lines: IntArray) -> list[Problem]:
    if not len(days):
        return []
    problems = []
    number = days.astype(np.int64)
    _, first = np.unique(number, return_index=True)
    repeated = np.ones(len(number), dtype=bool)
    repeated[first] = False
    unsorted = np.zeros(len(number), dtype=bool)
    unsorted[1:] = number[1:] < number[:-1]
    unsorted &= ~repeated
    if repeated.any():
        row = int(np.flatnonzero(repeated)[0])
        original = int(lines[np.flatnonzero(number == number[row])[0]])
        rows = name_rows(lines[repeated])
        message = f"{days[row]} occurs again ({rows}; first in row {original}): keep one row a day"
        problems.append(Problem(int(lines[row]), DATE, message))
    if unsorted.any():
        row = int(np.flatnonzero(unsorted)[0])
        rows = name_rows(lines[unsorted])
        message = f"{days[row]} comes after {days[row - 1]} ({rows}): sort the file by date, oldest first"
        problems.append(Problem(int(lines[row]), DATE, message))
    return problems


def cell_problems(file: CsvFile, columns: Sequence[str]) -> list[Problem]:
    """Find cells of `columns` (all in the header) that are text, empty, NaN or infinite."""
    problems = []
    for name in columns:
        column = file.index[name]
        values = file.values[:, column]
        if np.isfinite(values).all():
            continue
        missing = np.isnan(values)
        if column in file.text:
            text = file.text[column]
            missing[text.rows] = False
            rows = file.lines[text.rows]
            description = f"{shorten(text.example)} is not a number ({name_rows(rows)})"
            problems.append(Problem(int(rows[0]), name, description))
        for mask, description in ((missing, "an empty cell or NaN"), (np.isinf(values), "an infinite value")):
            if mask.any():
                rows = file.lines[mask]
                repair = "write a finite number or leave the row out"
                problems.append(Problem(int(rows[0]), name, f"{description} ({name_rows(rows)}): {repair}"))
    return problems


def pair_problems(values: FloatArray, columns: Sequence[str], lines: IntArray) -> list[Problem]:
    """Find sine and cosine columns of `values` [n, len(columns)] whose squares do not add up to 1."""
    problems = []
    index = {name: column for column, name in enumerate(columns)}
    for name in columns:
        partner = name.removesuffix("_sin") + "_cos"
        if not name.endswith("_sin") or partner not in index:
            continue
        # Clipped, so that the square of a huge number does not overflow.
        pair = np.clip(values[:, [index[name], index[partner]]], -1e3, 1e3)
        mask = np.abs((pair**2).sum(axis=1) - 1) > PAIR_TOLERANCE
        if mask.any():
            rows = lines[mask]
            message = f"sin^2 + cos^2 with {partner} is not 1 ({name_rows(rows)}): write the angles unscaled"
            problems.append(Problem(int(rows[0]), name, message))
    return problems


def bar_problems(values: FloatArray, columns: Sequence[str], lines: IntArray) -> list[Problem]:
    """Find days whose log high is not the highest or whose log low is not the lowest of the four targets.

    This order holds for log prices, and for returns relative to one common price (the previous close).
    """
    if not set(TARGETS) <= set(columns):
        return []
    opened, high, low, close = (values[:, columns.index(name)] for name in TARGETS)
    too_low = high < np.maximum(np.maximum(opened, close), low) - BAR_TOLERANCE
    too_high = low > np.minimum(opened, close) + BAR_TOLERANCE
    problems = []
    for mask, name, description in (
        (too_low, "log_High", "is below log_Open, log_Low or log_Close"),
        (too_high, "log_Low", "is above log_Open or log_Close"),
    ):
        if mask.any():
            rows = lines[mask]
            problems.append(Problem(int(rows[0]), name, f"{description} ({name_rows(rows)}): check the prices"))
    return problems
