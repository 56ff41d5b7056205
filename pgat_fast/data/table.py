"""The data file as a table of numbers, and the check of a data file."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pgat_fast.data.bars import describe_mended, mend_bars
from pgat_fast.data.checks import Dates, bar_problems, cell_problems, column_problems, pair_problems, parse_dates
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.csv_file import (
    DATE,
    CsvFile,
    FloatArray,
    Problem,
    UnreadableFileError,
    decode,
    ends_with_line_break,
    parse_rows,
)
from pgat_fast.data.splits import split_rows
from pgat_fast.errors import DataError
from pgat_fast.utils.io import read_regular_file

__all__ = ["Problem", "Table", "check_file", "read_table"]

_log = logging.getLogger(__name__)
_SHOWN = 5
_CUT_OFF = (
    "the file does not end with a line break: if it was cut off, its last number is wrong; build it again, or add the "
    "line break"
)


@dataclass(frozen=True, eq=False)
class Table:
    """F numeric columns over n days: all values finite, one row per day, oldest first."""

    dates: Dates
    """[n], days."""
    values: FloatArray
    """[n, F], float64, as in the file."""
    columns: tuple[str, ...]
    """F names."""
    source: str = "the table"
    """Origin of the table, for messages."""
    sha256: str = ""
    """Of the file's bytes, hexadecimal; empty if no file was read."""
    base_price: float = 1.0
    """Close before the first row, from which returns are chained (`metadata.resolve_base_price`); 1 if unknown."""

    def select(self, columns: Sequence[str]) -> FloatArray:
        """Return the values of `columns`, [n, len(columns)], in this order. Raises DataError if one is missing."""
        missing = [name for name in columns if name not in self.columns]
        if missing:
            suffix = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            names = ", ".join(missing[:_SHOWN])
            raise DataError(f"{self.source}: no column {names}{suffix}: correct the name, or add the column")
        return self.values[:, [self.columns.index(name) for name in columns]]


class _Content(NamedTuple):
    """What `_read_content` read from a file."""

    table: Table
    """Of use only without `errors`."""
    records: int
    """Number of data rows, including those that could not be read."""
    errors: list[Problem]
    warnings: list[Problem]
    """Faults with which a model can be trained: prices out of order, a missing line break at the end."""


def check_file(
    path: str | Path,
    seq_len: int = 250,
    pred_len: int = 10,
    validation_length: int = 50,
    test_length: int = 50,
    columns: Sequence[str] = COLUMNS,
) -> list[Problem]:
    """Return every kind of fault in the data file at `path`; the list is empty if the file is valid.

    The file must hold `date` and `columns`, in this order and no others, and enough rows for the windows.
    Faults of the same kind in the same column form one Problem, with the first rows and a count.
    """
    return check_table(path, seq_len, pred_len, validation_length, test_length, columns)[0]


def check_table(
    path: str | Path,
    seq_len: int,
    pred_len: int,
    validation_length: int,
    test_length: int,
    columns: Sequence[str] = COLUMNS,
) -> tuple[list[Problem], Table | None]:
    """Return the result of `check_file`, and the table; None if a model cannot be trained on it."""
    try:
        content = _read_content(Path(path), columns, exact=True)
    except UnreadableFileError as error:
        return [error.problem], None
    problems = content.errors + content.warnings
    try:
        split_rows(content.records, seq_len, pred_len, validation_length, test_length)
    except DataError as error:
        problems.append(Problem(None, None, str(error)))
    return problems, None if content.errors else content.table


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> Table:
    """Read `columns` of the data file at `path`; by default all its numeric columns, in the file's order.

    Only these columns and `date` are checked, and they may be anywhere in the file. A column without a single
    number is not numeric. Prices out of order (a high below the close) only cause a warning: a model can be
    trained on them, and returns relative to four different prices look like that. Rounding noise in that order is
    mended (`bars.BAR_TOLERANCE`) and logged.

    Raises DataError with the first problems.
    """
    try:
        content = _read_content(Path(path), columns, exact=False)
    except UnreadableFileError as error:
        raise DataError(f"{path}: {error.problem}") from error
    if content.errors:
        raise DataError(_summarize(path, content.errors))
    for warning in content.warnings:
        _log.warning("%s: %s", path, warning)
    return content.table


def _read_content(path: Path, columns: Sequence[str] | None, exact: bool) -> _Content:
    """Read the file at `path`, and check its header (see `column_problems`), its rows, and the values of `columns`.

    Raises UnreadableFileError if no row can be read.
    """
    try:
        content = read_regular_file(path, "name a CSV file, or build one with `pgat-fast data build`")
    except OSError as error:
        raise UnreadableFileError(None, str(error)) from error
    sha256 = hashlib.sha256(content).hexdigest()
    text = decode(content)
    file = parse_rows(text)
    names = _numeric_columns(file, path) if columns is None else tuple(columns)
    present = [name for name in names if name in file.index]
    values = file.values[:, [file.index[name] for name in present]]
    dates, date_problems = parse_dates(file)
    errors = [
        *column_problems(file.header, names, exact),
        *([] if file.records else [Problem(None, None, "the file has a header and no rows")]),
        *file.problems,
        *date_problems,
        *cell_problems(file, present),
        *pair_problems(values, present, file.lines),
    ]
    warnings = bar_problems(values, present, file.lines)
    if not warnings and set(TARGETS) <= set(present):
        targets = [present.index(name) for name in TARGETS]
        mended = mend_bars(values[:, targets], logs=True)
        values[:, targets] = mended.bars
        noise = describe_mended(mended, lambda i: f"row {file.lines[i]}")
        if noise:
            _log.info("%s: %s", path, noise)
    if not ends_with_line_break(text):
        warnings.append(Problem(None, None, _CUT_OFF))
    return _Content(Table(dates, values, names, str(path), sha256), file.records, errors, warnings)


def _numeric_columns(file: CsvFile, path: Path) -> tuple[str, ...]:
    """Return all columns except `date` and those in which every cell is text."""
    text = {column for column, cells in file.text.items() if len(cells.rows) == len(file.lines)}
    if text:
        names = ", ".join(file.header[column] for column in sorted(text)[:_SHOWN])
        _log.info("%s: %d columns of text are left out: %s", path, len(text), names)
    numeric = [name for column, name in enumerate(file.header) if column not in text and name != DATE]
    return tuple(dict.fromkeys(numeric))


def _summarize(path: str | Path, problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    first_problems = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    suffix = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{path}: {len(problems)} problems{first_problems}{suffix}"
