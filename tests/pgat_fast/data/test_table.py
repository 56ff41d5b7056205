"""Data files are read exactly, and valid ones have no problem."""

import logging
from pathlib import Path

import numpy as np
import pytest

from pgat_fast.data.columns import COLUMNS
from pgat_fast.data.table import Problem, read_table
from pgat_fast.errors import DataError
from tests.pgat_fast.data.small_file import ROWS, check, good_rows, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prices.csv"


def test_valid_file_has_no_problem(file: Path) -> None:
    assert check(write(file, good_rows())) == []


def test_missing_final_line_break_is_reported_and_read_with_warning(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (problem,) = check(write(file, good_rows(), ""))
    assert "does not end with a line break" in str(problem)
    assert len(read_table(file).values) == ROWS
    assert "does not end with a line break" in caplog.text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n\n", "\n  \n"])
def test_trailing_empty_lines_are_ignored(file: Path, end: str) -> None:
    assert check(write(file, good_rows(), end)) == []
    assert len(read_table(file).values) == ROWS


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_all_line_ends_and_byte_order_mark_are_accepted(file: Path, line_end: str) -> None:
    text = line_end.join([*(",".join(row) for row in good_rows()), ""])
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert check(file) == []


def test_values_are_read_bit_exactly(file: Path) -> None:
    rows = good_rows()
    rows[4][11] = "0.1234567890123456789012345678901234567890"
    table = read_table(write(file, rows))
    expected = np.array([[float(cell) for cell in row[1:]] for row in rows[1:]])
    assert table.values.dtype == np.float64
    assert np.array_equal(table.values, expected)
    assert table.columns == COLUMNS
    assert table.dates.dtype == np.dtype("datetime64[D]")
    assert [str(day) for day in table.dates] == [row[0] for row in rows[1:]]


def test_quoted_padded_and_scientific_numbers_are_read(file: Path) -> None:
    cells = ['"1.5"', " -2 ", "+3e-2", ".5", "7."]
    rows = [
        ["date", "a", "b", "c", "d", "e"],
        ["2024-01-01 00:00:00", *cells],
        ["2024-01-02T00:00:00", *cells],
    ]
    assert read_table(write(file, rows)).values.tolist() == [[1.5, -2.0, 0.03, 0.5, 7.0]] * 2


def test_selected_columns_keep_order_and_others_are_not_checked(file: Path) -> None:
    rows = [["x", "date", "ticker", "y"], ["1", "2024-01-01", "ABC", ""], ["2", "2024-01-02", "ABC", "inf"]]
    table = read_table(write(file, rows), columns=["x"])
    assert table.columns == ("x",)
    assert table.values.tolist() == [[1.0], [2.0]]
    with pytest.raises(DataError, match="column y: an empty cell"):
        read_table(file, columns=["y", "x"])


def test_all_numeric_columns_are_read_by_default(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [["b", "date", "ticker", "a"], ["1", "2024-01-01", "ABC", "3"], ["2", "2024-01-02", "ABC", "4"]]
    with caplog.at_level(logging.INFO):
        table = read_table(write(file, rows))
    assert table.columns == ("b", "a")
    assert table.values.tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert "ticker" in caplog.text


def test_prices_out_of_order_are_read_with_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = good_rows()
    rows[3][2] = "-1"
    table = read_table(write(file, rows))
    assert table.values[2, 1] == -1
    assert "row 4, column log_High" in caplog.text


def test_missing_and_repeated_columns_raise(file: Path) -> None:
    write(file, [["date", "price", "volume"], ["2024-01-01", "1", "2"]])
    with pytest.raises(DataError, match=r"column prices: is missing \(did you mean 'price'\?\)"):
        read_table(file, columns=["prices"])
    with pytest.raises(DataError, match="column price: is requested twice"):
        read_table(file, columns=["price", "price"])


def test_problem_text_has_row_and_column() -> None:
    assert str(Problem(3, "a", "wrong")) == "row 3, column a: wrong"
    assert str(Problem(3, None, "wrong")) == "row 3: wrong"
    assert str(Problem(None, "a", "wrong")) == "column a: wrong"
    assert str(Problem(None, None, "wrong")) == "wrong"


def test_price_order_tolerates_rounding_to_six_decimals(file: Path) -> None:
    rows = good_rows()
    rows[1][1:5] = ["0.010000", "0.009999", "0.000001", "0.000000"]
    assert check(write(file, rows)) == []
    rows[1][1:5] = ["0.010000", "0.009998", "0.000002", "0.000000"]
    assert [(p.row, p.column) for p in check(write(file, rows))] == [(2, "log_High"), (2, "log_Low")]


def test_angle_check_tolerates_rounding_to_four_decimals(file: Path) -> None:
    rows = good_rows()
    for column, name in enumerate(rows[0]):
        if name.endswith(("_sin", "_cos")):
            for row in rows[1:]:
                row[column] = f"{float(row[column]):.4f}"
    assert check(write(file, rows)) == []
