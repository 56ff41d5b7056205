"""Parser of a CSV file into numbers, with the line of every row and the faults of its rows.

Strict where a lenient parser silently errs: every row must have as many fields as the header, so that none is
shifted or filled up, and numbers must be written in plain ASCII. Values are rounded correctly (Python's
`float`).
"""

import csv
import hashlib
import io
import math
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass
class TextCells:
    """The cells of one column that are not numbers: their rows (indices, not lines) and the first text."""

    example: str
    rows: list[int] = field(default_factory=list)


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
    complete: bool
    """Whether the last row ends with a line break; otherwise its last number may have been cut off."""
    problems: list[Problem]
    """Faults of whole rows, which are left out of `lines`, `dates` and `values`."""
    sha256: str
    """Of the bytes read, hexadecimal."""


def shorten(text: str, length: int = 40) -> str:
    """Quote `text` for a message, on one line and cut to `length` characters."""
    return repr(text if len(text) <= length else text[:length] + "...")


def name_rows(lines: Sequence[int] | IntArray, shown: int = 3) -> str:
    """Return the first line numbers and the count of the rest: `row 3`, or `rows 3, 7, 9 and 12 more`."""
    first = ", ".join(str(line) for line in lines[:shown])
    suffix = f" and {len(lines) - shown} more" if len(lines) > shown else ""
    return f"row{'s' if len(lines) > 1 else ''} {first}{suffix}"


def parse_csv(path: str | Path) -> CsvFile | Problem:
    """Read the file at `path`; return a Problem if no row can be read at all."""
    data = _read_bytes(Path(path))
    if isinstance(data, Problem):
        return data
    text = _decode(data)
    if isinstance(text, Problem):
        return text
    # newline="" keeps the line ends, so that the reader's line numbers are those of an editor.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
    except csv.Error as error:
        return Problem(1, None, f"the header cannot be read: {error}; check its quotation marks")
    rows = _Rows(header, plain=_is_plain(text), complete=text.endswith(("\n", "\r")))
    previous_line = reader.line_num
    try:
        for record in reader:
            rows.add(record, previous_line + 1, reader.line_num)
            previous_line = reader.line_num
    except csv.Error as error:
        message = f"cannot be read ({error}): check its quotation marks; nothing after it was read"
        rows.problems.append(Problem(previous_line + 1, None, message))
    return rows.finish(hashlib.sha256(data).hexdigest())


def _read_bytes(path: Path) -> bytes | Problem:
    try:
        if not path.exists():
            advice = "build it with `pgat-fast data build` or check the path"
            return Problem(None, None, f"the file does not exist: {advice}")
        if path.is_dir():
            return Problem(None, None, "this is a directory: name the CSV file in it")
        if not path.is_file():
            return Problem(None, None, "this is not a regular file: name a CSV file")
        return path.read_bytes()
    except OSError as error:
        return Problem(None, None, f"the file cannot be read: {error.strerror or error}")


def _decode(data: bytes) -> str | Problem:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Problem(
            line, None, f"byte {error.start} of the file is not UTF-8 text: save the file as plain UTF-8 CSV"
        )
    if not text.strip():
        return Problem(None, None, "the file is empty: build it again")
    return text


def _is_plain(text: str) -> bool:
    """Return whether `float` is safe for the cells: it also accepts `1_000` and digits of other scripts."""
    end_of_header = text.find("\n")
    return end_of_header >= 0 and text.find("_", end_of_header) < 0 and text[end_of_header:].isascii()


def _number(cell: str) -> float | None:
    """Return the number in `cell`, NaN if the cell is empty, None if it is text."""
    cell = cell.strip()
    if not cell:
        return math.nan
    return float(cell) if _NUMBER.fullmatch(cell) else None


class _Rows:
    """Collector of the rows of one file."""

    def __init__(self, header: list[str], plain: bool, complete: bool) -> None:
        self.header = header
        self.plain = plain
        self.complete = complete
        self.date = header.index(DATE) if DATE in header else None
        self.lines: list[int] = []
        self.dates: list[str] = []
        self.numbers = array("d")
        self.text: dict[int, TextCells] = {}
        self.blank: list[int] = []
        self.long: list[tuple[int, int]] = []
        self.short: list[tuple[int, int]] = []
        self.records = 0
        self.last = 0
        self.problems: list[Problem] = []

    def add(self, record: list[str], line: int, last_line: int) -> None:
        """Add the record that begins at `line` and ends at `last_line`."""
        if not record or (len(record) == 1 and not record[0].strip()):
            self.blank.append(line)
            return
        self.records += 1
        self.last = line
        if last_line > line:
            message = f"a quotation mark opens in this row and closes in row {last_line}: remove it"
            self.problems.append(Problem(line, None, message))
        elif len(record) != len(self.header):
            (self.long if len(record) > len(self.header) else self.short).append((line, len(record)))
        else:
            self._add_cells(record, line)

    def _add_cells(self, record: list[str], line: int) -> None:
        if self.date is not None:
            self.dates.append(record[self.date])
            record[self.date] = "nan"
        try:
            if not self.plain:
                raise ValueError
            # Convert into a list first: a row that fails half way must add nothing.
            self.numbers.extend(list(map(float, record)))
        except ValueError:
            self._add_cells_one_by_one(record)
        self.lines.append(line)

    def _add_cells_one_by_one(self, record: list[str]) -> None:
        for column, cell in enumerate(record):
            number = _number(cell)
            if number is None:
                self.text.setdefault(column, TextCells(cell)).rows.append(len(self.lines))
                number = math.nan
            self.numbers.append(number)

    def finish(self, sha256: str) -> CsvFile:
        width = len(self.header)
        return CsvFile(
            header=self.header,
            index={name: column for column, name in reversed(list(enumerate(self.header)))},
            lines=np.array(self.lines, dtype=np.int64),
            dates=self.dates,
            values=np.array(self.numbers, dtype=np.float64).reshape(len(self.lines), width),
            text=self.text,
            records=self.records,
            complete=self.complete,
            problems=[*self.problems, *self._length_problems()],
            sha256=sha256,
        )

    def _length_problems(self) -> list[Problem]:
        width = len(self.header)
        problems = []
        if self.long:
            line, fields = self.long[0]
            rows = name_rows([line for line, _ in self.long])
            message = f"{fields} fields where the header has {width} ({rows}): a field too many shifts all after it"
            problems.append(Problem(line, None, message))
        if self.short and self.short[-1][0] == self.last:
            line, fields = self.short.pop()
            message = f"the last row has only {fields} of {width} fields: the file is cut off; build it again"
            problems.append(Problem(line, None, message))
        if self.short:
            line, fields = self.short[0]
            rows = name_rows([line for line, _ in self.short])
            problems.append(Problem(line, None, f"only {fields} of {width} fields ({rows}): add what is missing"))
        # Empty lines at the end of the file are harmless.
        blank_lines = [line for line in self.blank if line < self.last]
        if blank_lines:
            problems.append(
                Problem(blank_lines[0], None, f"an empty line between the rows ({name_rows(blank_lines)}): delete it")
            )
        return problems
