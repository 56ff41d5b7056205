"""Parser of a CSV file into numbers: bytes -> text -> records -> rows, with the line of every row and its faults.

Strict where a lenient parser silently errs: every row must have as many fields as the header, so that none is
shifted or filled up, and numbers must be written in plain ASCII. Values are rounded correctly (Python's
`float`).
"""

import csv
import io
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DATE = "date"
"""Name of the column that holds the day of a row."""

_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """One kind of fault: its first location and a message.

    `row` is the 1-based line number in the file, or None if the fault has no line; `column` is a column name
    or None.
    """

    row: int | None
    column: str | None
    message: str

    def __str__(self) -> str:
        row = "" if self.row is None else f"row {self.row}"
        column = "" if self.column is None else f"column {self.column}"
        location = ", ".join(part for part in (row, column) if part)
        return f"{location}: {self.message}" if location else self.message


class UnreadableFileError(Exception):
    """Raised where reading a file must stop; `problem` is the reason."""

    def __init__(self, row: int | None, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(row, None, message)


class TextCells(NamedTuple):
    """The cells of one column that are not numbers: the first text, and the indices (not lines) of their rows."""

    example: str
    rows: list[int]


@dataclass(frozen=True)
class CsvFile:
    """The content of a CSV file: n rows with the right number of fields, C columns."""

    header: list[str]
    """C column names, as written in the file."""
    index: dict[str, int]
    """Position of each column; the first one if a name occurs twice."""
    lines: IntArray
    """[n], the 1-based line number of each row."""
    dates: list[str]
    """[n], the text of the first column called `date`; empty if there is none."""
    values: FloatArray
    """[n, C]; NaN if a cell is empty or not a number, and in the date column."""
    text: dict[int, TextCells]
    """Cells that are neither numbers nor empty, by the index of their column."""
    records: int
    """Number of data rows, including those of the wrong length."""
    problems: list[Problem]
    """Faults of whole rows, which are left out of `lines`, `dates` and `values`."""


def decode(content: bytes) -> str:
    """Return the text of a file. Raises UnreadableFileError if it is not UTF-8, or empty."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"byte {error.start} of the file is not UTF-8 text: save the file as plain CSV in UTF-8"
        raise UnreadableFileError(line, message) from error
    if not text.strip():
        raise UnreadableFileError(None, "the file is empty: name a file with a header and rows")
    return text


def ends_with_line_break(text: str) -> bool:
    """Return whether the last row is complete; otherwise its last number may have been cut off."""
    return text.endswith(("\n", "\r"))


def read_records(text: str, separator: str = ",") -> Iterator[tuple[int, int, list[str]]]:
    """Yield the first line, the last line (both 1-based) and the fields of each record, the header included.

    Raises UnreadableFileError at a record that is not CSV.
    """
    # newline="" keeps the line ends, so that the reader's line numbers are those of an editor.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    last_line = 0
    try:
        for fields in reader:
            yield last_line + 1, reader.line_num, fields
            last_line = reader.line_num
    except csv.Error as error:
        message = f"cannot be read as CSV ({error}): check the quotation marks"
        raise UnreadableFileError(last_line + 1, message) from error


def is_blank(fields: Sequence[str]) -> bool:
    """Return whether a record is an empty line."""
    return not fields or (len(fields) == 1 and not fields[0].strip())


def parse_rows(text: str) -> CsvFile:
    """Convert the records of `text` into numbers. Raises UnreadableFileError if the header is not CSV."""
    records = read_records(text)
    _, _, header = next(records)
    plain = _is_plain(text)
    date = header.index(DATE) if DATE in header else None
    lines: list[int] = []
    dates: list[str] = []
    numbers = array("d")
    cells: dict[int, TextCells] = {}
    blank: list[int] = []
    lengths: dict[int, int] = {}
    problems: list[Problem] = []
    count = last = 0
    try:
        for line, last_line, fields in records:
            if is_blank(fields):
                blank.append(line)
                continue
            count, last = count + 1, line
            if last_line > line:
                message = f"a quotation mark opens in this row and closes in row {last_line}: remove it"
                problems.append(Problem(line, None, message))
            elif len(fields) != len(header):
                lengths[line] = len(fields)
            else:
                if date is not None:
                    dates.append(fields[date])
                    fields[date] = "nan"
                numbers.extend(_parse_numbers(fields, plain, cells, row=len(lines)))
                lines.append(line)
    except UnreadableFileError as error:
        problems.append(Problem(error.problem.row, None, f"{error}; nothing after it was read"))
    return CsvFile(
        header=header,
        index={name: column for column, name in reversed(list(enumerate(header)))},
        lines=np.array(lines, dtype=np.int64),
        dates=dates,
        values=np.array(numbers, dtype=np.float64).reshape(len(lines), len(header)),
        text=cells,
        records=count,
        problems=[*problems, *_length_problems(lengths, len(header), last), *_blank_problems(blank, last)],
    )


def _is_plain(text: str) -> bool:
    """Return whether `float` is safe for the cells: it also accepts `1_000` and digits of other scripts."""
    end_of_header = text.find("\n")
    return end_of_header >= 0 and text.find("_", end_of_header) < 0 and text[end_of_header:].isascii()


def _parse_numbers(fields: list[str], plain: bool, cells: dict[int, TextCells], row: int) -> list[float]:
    """Return the numbers in `fields`, NaN for cells that are empty or text; add the text to `cells`."""
    if plain:
        try:
            return list(map(float, fields))
        except ValueError:
            pass  # some cell is empty or text
    numbers = []
    for column, field in enumerate(fields):
        cell = field.strip()
        is_number = _NUMBER.fullmatch(cell) is not None
        if cell and not is_number:
            cells.setdefault(column, TextCells(field, [])).rows.append(row)
        numbers.append(float(cell) if is_number else math.nan)
    return numbers


def _length_problems(lengths: dict[int, int], width: int, last: int) -> list[Problem]:
    """Return the faults of rows with another number of fields than `width`: `lengths` by line; `last` is the last."""
    problems: list[Problem] = []
    too_long = [line for line, length in lengths.items() if length > width]
    too_short = [line for line, length in lengths.items() if length < width]
    if too_short and too_short[-1] == last:
        message = f"the last row has only {lengths[last]} of {width} fields: the file is cut off; build it again"
        problems.append(Problem(too_short.pop(), None, message))
    if too_long:
        fault = f"{lengths[too_long[0]]} fields where the header has {width}"
        problems += fault_in_rows(too_long, None, fault, "a field too many shifts all after it")
    if too_short:
        fault = f"only {lengths[too_short[0]]} of {width} fields"
        problems += fault_in_rows(too_short, None, fault, "add what is missing")
    return problems


def _blank_problems(blank: list[int], last: int) -> list[Problem]:
    """Return the fault of empty lines before the line `last`; at the end of the file they are harmless."""
    return fault_in_rows([line for line in blank if line < last], None, "an empty line between the rows", "delete it")


def fault_in_rows(lines: Sequence[int] | IntArray, column: str | None, fault: str, advice: str) -> list[Problem]:
    """Return the `fault` of the rows at `lines` as one Problem that names the first ones; nothing without rows."""
    if not len(lines):
        return []
    return [Problem(int(lines[0]), column, f"{fault} ({name_rows(lines)}): {advice}")]


def name_rows(lines: Sequence[int] | IntArray, shown: int = 3) -> str:
    """Return the first line numbers and the count of the others: `row 3`, or `rows 3, 7, 9 and 12 more`."""
    first = ", ".join(str(line) for line in lines[:shown])
    suffix = f" and {len(lines) - shown} more" if len(lines) > shown else ""
    return f"row{'s' if len(lines) > 1 else ''} {first}{suffix}"


def shorten(text: str, length: int = 40) -> str:
    """Quote `text` for a message, on one line and cut to `length` characters."""
    return repr(text if len(text) <= length else text[:length] + "...")
