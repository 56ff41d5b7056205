"""The data file as a table of numbers, and the check of a data file."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pgat_fast.data.checks import (
    Dates,
    bar_problems,
    cell_problems,
    column_problems,
    pair_problems,
    parse_dates,
)
from pgat_fast.data.columns import COLUMNS
from pgat_fast.data.csv_file import DATE, CsvFile, FloatArray, Problem, parse_csv
from pgat_fast.data.splits import split_rows
from pgat_fast.errors import DataError

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
    file = parse_csv(path)
    if isinstance(file, Problem):
        return [file]
    columns = tuple(columns)
    present = [name for name in columns if name in file.index]
    values = _select(file, present)
    problems = [
        *column_problems(file.header, columns),
        *file.problems,
        *parse_dates(file)[1],
        *cell_problems(file, present),
        *pair_problems(values, present, file.lines),
        *bar_problems(values, present, file.lines),
    ]
    if not file.complete:
        problems.append(Problem(None, None, _CUT_OFF))
    try:
        split_rows(file.records, seq_len, pred_len, validation_length, test_length)
    except DataError as error:
        problems.append(Problem(None, None, str(error)))
    return problems


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> Table:
    """Read `columns` of the data file at `path`; by default all its numeric columns, in the file's order.

    Only these columns and `date` are checked, and they may be anywhere in the file. A column without a single
    number is not numeric. Prices out of order (a high below the close) only cause a warning: a model can be
    trained on them, and returns relative to four different prices look like that.

    Raises DataError with the first problems.
    """
    file = parse_csv(path)
    if isinstance(file, Problem):
        raise DataError(f"{path}: {file}")
    names = _numeric_columns(file, path) if columns is None else tuple(columns)
    problems = column_problems(file.header, names, exact=False)
    problems += [Problem(None, name, "is asked for twice") for name, count in Counter(names).items() if count > 1]
    if not names:
        problems.append(Problem(1, None, "no numeric column"))
    if not file.records:
        problems.append(Problem(None, None, "the file has a header and no rows"))
    present = [name for name in names if name in file.index]
    days, date_problems = parse_dates(file)
    values = _select(file, present)
    problems += [*file.problems, *date_problems, *cell_problems(file, present)]
    problems += pair_problems(values, present, file.lines)
    if problems:
        raise DataError(_summarize(path, problems))
    if not file.complete:
        _log.warning("%s: %s", path, _CUT_OFF)
    for problem in bar_problems(values, present, file.lines):
        _log.warning("%s: %s", path, problem)
    return Table(days, values, tuple(names), source=str(path), sha256=file.sha256)


def _numeric_columns(file: CsvFile, path: str | Path) -> tuple[str, ...]:
    """Return all columns except `date` and those in which every cell is text."""
    text = {column for column, cells in file.text.items() if len(cells.rows) == len(file.lines)}
    if text:
        names = ", ".join(file.header[column] for column in sorted(text)[:_SHOWN])
        _log.info("%s: %d columns of text are left out: %s", path, len(text), names)
    numeric = [name for column, name in enumerate(file.header) if column not in text and name != DATE]
    return tuple(dict.fromkeys(numeric))


def _select(file: CsvFile, columns: Sequence[str]) -> FloatArray:
    return file.values[:, [file.index[name] for name in columns]]


def _summarize(path: str | Path, problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    first_problems = "".join(f"\n  {problem}" for problem in problems[:_SHOWN])
    suffix = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{path}: {len(problems)} problems{first_problems}{suffix}"
