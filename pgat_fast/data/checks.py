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

from pgat_fast.data.bars import BAR_TOLERANCE as BAR_TOLERANCE
from pgat_fast.data.bars import mend_bars
from pgat_fast.data.columns import TARGETS
from pgat_fast.data.csv_file import (
    DATE,
    CsvFile,
    FloatArray,
    IntArray,
    Problem,
    fault_in_rows,
    name_rows,
    shorten,
)

Dates = NDArray[np.datetime64]

PAIR_TOLERANCE = 1e-3
"""Tolerance of sin^2 + cos^2 = 1: seven times the error of four decimals; scaled columns exceed it by far."""

_SHOWN = 10
_DAY = re.compile(r"(\d{4}-\d\d-\d\d)([ T]00:00:00)?", re.ASCII)


def column_problems(header: Sequence[str], columns: Sequence[str], exact: bool = True) -> list[Problem]:
    """Compare the header with `date` and the required `columns`.

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
    requests = Counter(columns)
    problems = [] if columns else [Problem(1, None, "no numeric column")]
    problems += [Problem(None, name, "is requested twice") for name in expected if requests[name] > 1]
    problems += _list_columns(missing, extra, "is missing{}", "are missing")
    if exact:
        problems += _list_columns(extra, missing, "is not expected{}: remove it", "are not expected")
    problems += _duplicate_columns(header, present if exact else expected)
    if exact:
        in_file = [name for name in present if name in expected]
        in_order = [name for name in expected if name in present]
        swapped = [(name, other) for name, other in zip(in_file, in_order, strict=True) if name != other]
        problems += [
            Problem(1, name, f"the columns are in the wrong order: {other!r} belongs where {name!r} is")
            for name, other in swapped[:1]
        ]
    return problems


def _duplicate_columns(header: Sequence[str], columns: Iterable[str]) -> list[Problem]:
    """Find `columns` that occur more than once in the header, or have no name."""
    counts = Counter(header)
    problems = [
        Problem(1, name, f"occurs {counts[name]} times in the header: keep one") for name in columns if counts[name] > 1
    ]
    if "" in columns:
        position = list(header).index("") + 1
        message = f"field {position} of the header has no name: an index, perhaps; write the file without it"
        problems.append(Problem(1, None, message))
    return problems


def _list_columns(names: Sequence[str], candidates: Sequence[str], message: str, summary: str) -> list[Problem]:
    """Return `message` for the first of `names`, with the closest of `candidates`, and a count of the others."""
    problems = [Problem(1, name, message.format(_suggest(name, candidates))) for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        problems.append(Problem(1, None, f"{len(names) - _SHOWN} more columns {summary}"))
    return problems


def _suggest(name: str, candidates: Sequence[str]) -> str:
    """Return a question for the closest of `candidates`, or nothing if none is close."""
    # Bounded, because comparing all pairs of names of a malicious header would take minutes.
    names = [candidate for candidate in candidates[:200] if len(candidate) <= 80]
    if len(name) > 80:
        return ""
    folded = {candidate.strip().casefold(): candidate for candidate in reversed(names)}
    key = name.strip().casefold()
    close = get_close_matches(name, names, n=1, cutoff=0.7) or ([folded[key]] if key in folded else [])
    return f" (did you mean {close[0]!r}?)" if close else ""


def parse_dates(file: CsvFile) -> tuple[Dates, list[Problem]]:
    """Read the dates ([n]; NaT if a cell holds none) and find those that are wrong, repeated or unsorted."""
    days = np.array([_parse_date(text) for text in file.dates], dtype="datetime64[D]")
    invalid, valid = np.flatnonzero(np.isnat(days)), np.flatnonzero(~np.isnat(days))
    problems: list[Problem] = []
    if len(invalid):
        fault = f"{shorten(file.dates[invalid[0]])} is not a date"
        problems = fault_in_rows(file.lines[invalid], DATE, fault, "write it like 2024-03-28")
    return days, problems + _order_of_dates(days[valid], file.lines[valid])


def _parse_date(text: str) -> date | None:
    """Return the day in `text`, an ISO date that may have the time 00:00:00; None for anything else."""
    match = _DAY.fullmatch(text.strip())
    try:
        return date.fromisoformat(match[1]) if match else None
    except ValueError:
        return None


def _order_of_dates(days: Dates, lines: IntArray) -> list[Problem]:
    """Find days that occur again or come after a later day."""
    _, first, inverse = np.unique(days.astype(np.int64), return_index=True, return_inverse=True)
    original = first[inverse]
    """Index of the first row with the same day."""
    is_repeated = original < np.arange(len(days))
    repeated, unsorted = np.flatnonzero(is_repeated), np.flatnonzero(~is_repeated[1:] & (days[1:] < days[:-1])) + 1
    problems: list[Problem] = []
    if len(repeated):
        row = repeated[0]
        location = f"{name_rows(lines[repeated])}; first in row {lines[original[row]]}"
        problems.append(Problem(int(lines[row]), DATE, f"{days[row]} occurs again ({location}): keep one row a day"))
    if len(unsorted):
        fault = f"{days[unsorted[0]]} comes after {days[unsorted[0] - 1]}"
        problems += fault_in_rows(lines[unsorted], DATE, fault, "sort the file by date, oldest first")
    return problems


def cell_problems(file: CsvFile, columns: Sequence[str]) -> list[Problem]:
    """Find cells of `columns` (all in the header) that are text, empty, NaN or infinite."""
    problems: list[Problem] = []
    repair = "write a finite number or leave the row out"
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
            problems.append(Problem(int(rows[0]), name, f"{shorten(text.example)} is not a number ({name_rows(rows)})"))
        problems += fault_in_rows(file.lines[missing], name, "an empty cell or NaN", repair)
        problems += fault_in_rows(file.lines[np.isinf(values)], name, "an infinite value", repair)
    return problems


def pair_problems(values: FloatArray, columns: Sequence[str], lines: IntArray) -> list[Problem]:
    """Find sine and cosine columns of `values` [n, len(columns)] whose squares do not add up to 1."""
    problems: list[Problem] = []
    index = {name: column for column, name in enumerate(columns)}
    for name in columns:
        partner = name.removesuffix("_sin") + "_cos"
        if not name.endswith("_sin") or partner not in index:
            continue
        # Clipped, so that the square of a huge number does not overflow.
        pair = np.clip(values[:, [index[name], index[partner]]], -1e3, 1e3)
        rows = lines[np.abs((pair**2).sum(axis=1) - 1) > PAIR_TOLERANCE]
        problems += fault_in_rows(rows, name, f"sin^2 + cos^2 with {partner} is not 1", "write the angles unscaled")
    return problems


def bar_problems(values: FloatArray, columns: Sequence[str], lines: IntArray) -> list[Problem]:
    """Find days whose log high is not the highest or whose log low is not the lowest of the four targets.

    This order holds for log prices, and for returns relative to one common price (the previous close). Rounding noise
    is no fault (`bars.BAR_TOLERANCE`).
    """
    if not set(TARGETS) <= set(columns):
        return []
    bars = values[:, [columns.index(name) for name in TARGETS]]
    mended = mend_bars(bars, logs=True)
    # A low above the high alone is a fault of the high.
    low = mended.low_faults[bars[mended.low_faults, 2] > bars[mended.low_faults][:, [0, 3]].min(axis=1) + BAR_TOLERANCE]
    return [
        *fault_in_rows(
            lines[mended.high_faults], "log_High", "is below log_Open, log_Low or log_Close", "check the prices"
        ),
        *fault_in_rows(lines[low], "log_Low", "is above log_Open or log_Close", "check the prices"),
    ]
