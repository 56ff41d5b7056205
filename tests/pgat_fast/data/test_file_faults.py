"""Faults of a data file are found, located and named in limited time."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgat_fast.data.checks import column_problems
from pgat_fast.data.columns import COLUMNS
from pgat_fast.data.table import check_file, read_table
from pgat_fast.errors import DataError
from tests.pgat_fast.data.small_file import Rows, check, good_rows, write


@pytest.fixture
def in_time() -> Iterator[None]:
    """Require that a file takes at most two seconds, or twice as long on a slow, shared machine.

    Processor time is measured: waiting for a core does not depend on the file.
    """
    started = time.process_time()
    yield
    assert time.process_time() - started < 4


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prices.csv"


# Changes to the valid rows, and the row, column and words that the message must name


def _set(line: int, column: str, text: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[line - 1][rows[0].index(column)] = text

    return change


def _drop_column(rows: Rows) -> None:
    for row in rows:
        del row[5]


def _add_column(rows: Rows) -> None:
    for row in rows:
        row.append("volume" if row is rows[0] else "1.0")


def _add_index(rows: Rows) -> None:
    for number, row in enumerate(rows):
        row.insert(0, str(number) if number else "")


def _repeat_column(rows: Rows) -> None:
    for row in rows:
        row.append(row[7])


def _swap_columns(rows: Rows) -> None:
    for row in rows:
        row[9], row[10] = row[10], row[9]


def _unsorted(rows: Rows) -> None:
    rows[7], rows[8] = rows[8], rows[7]


def _cut_off(rows: Rows) -> None:
    del rows[-1][40:]


def _keep(count: int) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        del rows[1 + count :]

    return change


def _field_too_many_everywhere(rows: Rows) -> None:
    for row in rows[1:]:
        row.append("0.5")


FAULTS: dict[str, tuple[Callable[[Rows], object], int | None, str | None, str]] = {
    "missing column": (_drop_column, 1, "time_delta", "is missing"),
    "misspelt column": (_set(1, "dyn_Sun_speed", "dyn_Sun_sped"), 1, "dyn_Sun_speed", "mean 'dyn_Sun_sped'"),
    "column in another case": (_set(1, "date", "DATE"), 1, "date", "did you mean 'DATE'"),
    "extra column": (_add_column, 1, "volume", "is not expected"),
    "index written along": (_add_index, 1, None, "field 1 of the header has no name"),
    "column twice": (_repeat_column, 1, "dyn_Sun_cos", "occurs 2 times"),
    "columns swapped": (_swap_columns, 1, "dyn_Sun_sign_cos", "wrong order"),
    "no header": (lambda rows: rows.pop(0), 1, None, "header line"),
    "date twice": (_set(9, "date", "2024-01-03"), 9, "date", "occurs again (row 9; first in row 4)"),
    "dates unsorted": (_unsorted, 9, "date", "sort the file by date"),
    "date far ahead": (_set(7, "date", "2204-01-06"), 8, "date", "2024-01-07 comes after 2204-01-06 (row 8)"),
    "no date": (_set(5, "date", ""), 5, "date", "'' is not a date"),
    "date in another order": (_set(6, "date", "28/03/2024"), 6, "date", "'28/03/2024' is not a date"),
    "date that does not exist": (_set(6, "date", "2023-02-29"), 6, "date", "'2023-02-29' is not a date"),
    "date with a time of day": (_set(6, "date", "2024-01-05 16:00:00"), 6, "date", "is not a date"),
    "empty cell": (_set(5, "dyn_Sun_lat", ""), 5, "dyn_Sun_lat", "an empty cell or NaN (row 5)"),
    "NaN": (_set(5, "dyn_Sun_lat", "nan"), 5, "dyn_Sun_lat", "an empty cell or NaN"),
    "infinity": (_set(5, "time_delta", "-inf"), 5, "time_delta", "an infinite value (row 5)"),
    "number beyond float64": (_set(5, "time_delta", "1e999"), 5, "time_delta", "an infinite value"),
    "text": (_set(5, "dyn_Sun_lat", "n/a"), 5, "dyn_Sun_lat", "'n/a' is not a number"),
    "underscore in a number": (_set(5, "dyn_Sun_lat", "1_000"), 5, "dyn_Sun_lat", "'1_000' is not a number"),
    "digits of another script": (_set(5, "dyn_Sun_lat", "\uff11"), 5, "dyn_Sun_lat", "is not a number"),
    "null byte": (_set(5, "dyn_Sun_lat", "1\x00"), 5, "dyn_Sun_lat", "is not a number"),
    "decimal comma": (_set(5, "dyn_Sun_lat", "0,5"), 5, None, "120 fields where the header has 119"),
    "field too many": (lambda rows: rows[11].append("1"), 12, None, "120 fields where the header has 119"),
    "field too many in every row": (_field_too_many_everywhere, 2, None, "rows 2, 3, 4 and 27 more"),
    "field too few": (lambda rows: rows[11].pop(), 12, None, "only 118 of 119 fields (row 12)"),
    "last row cut off": (_cut_off, 31, None, "only 40 of 119 fields"),
    "empty line inside": (lambda rows: rows.insert(4, []), 5, None, "an empty line"),
    "line of commas": (lambda rows: rows.insert(4, [""] * 119), 5, "date", "is not a date"),
    "quotation mark not closed": (_set(8, "dyn_Sun_lat", '"0.1'), 8, None, "quotation mark"),
    "quotation mark over lines": (_set(8, "date", '"2024-01-07\n"'), 8, None, "closes in row 9"),
    "text after a quotation mark": (_set(8, "dyn_Sun_lat", '"0.1"2'), 8, None, "quotation marks"),
    "high below close": (_set(10, "log_High", "-0.5"), 10, "log_High", "is below"),
    "low above open": (_set(10, "log_Low", "0.5"), 10, "log_Low", "is above log_Open or log_Close (row 10)"),
    "scaled angle": (_set(10, "Moon_cos", "-1.7"), 10, "Moon_sin", "sin^2 + cos^2 with Moon_cos is not 1"),
    "huge angle": (_set(10, "Moon_cos", "1e300"), 10, "Moon_sin", "is not 1"),
    "last number cut off": (_set(31, "Ascendant_cos", "0."), 31, "Ascendant_sin", "is not 1 (row 31)"),
    "too few rows": (_keep(16), None, None, "16 rows are too few"),
    "no rows": (_keep(0), None, None, "need at least 17 rows"),
}  # fmt: skip

WARNED_ONLY = {"high below close", "low above open"}
ONLY_FOR_THE_WHOLE_FILE = {"extra column", "index written along", "columns swapped", "too few rows"}
UNREADABLE = [name for name in FAULTS if name not in WARNED_ONLY | ONLY_FOR_THE_WHOLE_FILE]


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_located_and_named_and_file_is_not_read(file: Path, name: str) -> None:
    change, row, column, message = FAULTS[name]
    rows = good_rows()
    change(rows)
    problems = check(write(file, rows))
    matches = [problem for problem in problems if (problem.row, problem.column) == (row, column)]
    assert any(message in problem.message for problem in matches), problems
    if name in UNREADABLE:
        with pytest.raises(DataError) as error:
            read_table(file, columns=COLUMNS)
        assert str(error.value).startswith(str(file))
        if name not in {"no rows", "no header"}:
            assert "row " in str(error.value)


@pytest.mark.parametrize("name", ["last number cut off", "misspelt column", "empty line inside", "date twice"])
def test_single_fault_gives_no_further_problems(file: Path, name: str) -> None:
    rows = good_rows()
    FAULTS[name][0](rows)
    halves = 2 if name == "misspelt column" else 1  # one column is missing, another one is unexpected
    assert len(check(write(file, rows))) == halves


def test_check_finds_all_kinds_of_faults_at_once(file: Path) -> None:
    rows = good_rows()
    names = ["column twice", "date twice", "no date", "empty cell", "infinity", "high below close", "scaled angle"]
    for name in (*names, "field too many", "last row cut off"):
        FAULTS[name][0](rows)
    messages = " ".join(str(problem) for problem in check_file(write(file, rows), seq_len=100))
    kinds = ["occurs 2 times", "occurs again", "not a date", "empty cell", "infinite", "is below", "sin^2"]
    for kind in (*kinds, "fields where the header", "cut off", "too few"):
        assert kind in messages


def test_repeated_faults_are_counted_not_listed(file: Path) -> None:
    rows = good_rows()
    for row in rows[1:]:
        row[11] = "?"
        row[12] = ""
    problems = check(write(file, rows))
    assert [problem.row for problem in problems] == [2, 2]
    assert all("rows 2, 3, 4 and 27 more" in problem.message for problem in problems)


# Files that are not CSV files at all


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\n\n \n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"date,a\n2024-01-01,\xff\n", "row 2: byte 18 of the file is not UTF-8"),
        ("date,a\n2024-01-01,1\n".encode("utf-16"), "not UTF-8"),
        (b"\x1f\x8b\x08\x00compressed", "not UTF-8"),
        (b"date;a\n2024-01-01;1\n", "separate the fields with commas"),
        (b"\ndate,a\n2024-01-01,1\n", "column date: is missing"),
        (b'"date,a\n2024-01-01,1\n', "quotation marks"),
        (b"date,a\n2024-01-01,text\n", "no numeric column"),
        (b"date\n2024-01-01\n", "no numeric column"),
        (b"date,a\n", "no rows"),
        (b",date,a\n0,2024-01-01,1\n", "field 1 of the header has no name"),
        (b"date,a,a\n2024-01-01,1,2\n", "column a: occurs 2 times"),
    ],
)
def test_content_without_table_raises(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    assert check(file)
    with pytest.raises(DataError) as error:
        read_table(file)
    assert words in str(error.value)
    assert str(error.value).startswith(str(file))


def test_plain_prices_suggest_data_build(file: Path) -> None:
    header = ["Date", "Open", "High", "Low", "Close", "Volume"]
    (problem,) = column_problems(header, [f"input_{i}" for i in range(118)])
    assert "pgat-fast data build" in problem.message


def test_missing_file_directory_and_pipe_raise(file: Path) -> None:
    pipe = file.parent / "pipe.csv"
    os.mkfifo(pipe)
    for path, message in ((file, "does not exist"), (file.parent, "is a directory"), (pipe, "not a regular file")):
        assert message in check(path)[0].message
        with pytest.raises(DataError, match=message):
            read_table(path)


# Files designed to take long: each is checked within two seconds


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize(
    "content",
    [
        "date," + ",".join(f"dyn_column_{i}" for i in range(40_000)) + "\n",
        "date," + ",".join(f"c{i}" for i in range(40_000)) + "\n2024-01-01" + ",?" * 40_000 + "\n",
        "date," + "x" * 3_000_000 + "\n2024-01-01,1\n",
        "date,a\n" + "2024-01-01,1\n" * 150_000,
        "date,a\n" + "2024-01-01,1,1\n" * 150_000,
        "date,a\n" + "\n" * 500_000 + "2024-01-01,1\n",
        'date,a\n2024-01-01,"' + "1,\n" * 500_000,
        "date,a\n2024-01-01," + "9" * 120_000 + "\n",
        "date,a\n2024-01-01," + "9" * 5_000_000 + "\n",
        "date,a\n" + "2024-01-01,1_\n" * 100_000,
        "," * 500_000 + "\n",
    ],
    ids=[
        "wide", "wide text", "long name", "one date", "ragged", "blank", "open quote", "digits", "long field",
        "slow path", "commas",
    ],
)  # fmt: skip
def test_malicious_files_are_checked_fast_with_short_message(file: Path, content: str) -> None:
    file.write_text(content)
    problems = check(file)
    assert 0 < len(problems) < 60
    with pytest.raises(DataError) as error:
        read_table(file)
    assert len(str(error.value)) < 2_000
