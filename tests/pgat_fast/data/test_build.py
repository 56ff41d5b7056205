"""The data file: its columns, targets and bytes, and how it is written."""

import hashlib
import logging
import os
import resource
import socket
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from pgat_fast.data.build import DIGITS, BuildReport, as_written, build_file, build_table
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.ephemeris import sky_table
from pgat_fast.data.prices import sp500_prices
from pgat_fast.errors import DataError

PRICES_CSV = """date,open,high,low,close
2020-01-02,10,12,9,11
2020-01-03,11,13,10,12
2020-01-06,12,14,11,13
2020-01-07,13,15,12,14
"""


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> BuildReport:
    """Build the file of the whole S&P 500 history, in a folder that did not exist."""
    return build_file(tmp_path_factory.mktemp("build") / "data" / "full.csv")


@pytest.fixture(scope="module")
def table(full: BuildReport) -> pd.DataFrame:
    """Return the content of the file of `full`, read by pandas."""
    return pd.read_csv(full.path, index_col="date", parse_dates=True)


@pytest.fixture
def prices_csv(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text(PRICES_CSV)
    return path


def test_file_has_header_and_16606_lines_of_119_fields_with_line_feed(full: BuildReport) -> None:
    content = full.path.read_bytes()
    assert b"\r" not in content
    header, *lines, end = content.decode("ascii").split("\n")
    assert header == "date," + ",".join(COLUMNS)
    assert len(lines) == 16606
    assert {line.count(",") for line in lines} == {118}
    assert end == ""


def test_full_history_has_rows_of_finite_numbers_in_order(table: pd.DataFrame) -> None:
    assert (table.dtypes.drop("time_delta") == np.float64).all()
    assert np.isfinite(table.to_numpy()).all()
    assert table.index.is_monotonic_increasing
    assert table.index.is_unique
    assert table.index[0] == pd.Timestamp(1950, 1, 4)


def test_report_describes_file(full: BuildReport) -> None:
    assert (full.rows, full.columns) == (16606, 118)
    assert (full.first_date, full.last_date) == (date(1950, 1, 4), date(2015, 12, 31))
    assert full.sha256 == hashlib.sha256(full.path.read_bytes()).hexdigest()
    assert full.seconds > 0


def test_returns_are_log_price_over_previous_close(table: pd.DataFrame) -> None:
    prices = sp500_prices()
    previous = prices["close"].shift()
    for target in TARGETS:
        expected = np.log((prices[target.removeprefix("log_").lower()] / previous).iloc[1:])
        # Half a unit of the last of the digits written.
        np.testing.assert_allclose(table[target], expected, rtol=0.5 * 10 ** (1 - DIGITS), atol=0)


def test_levels_are_log_price() -> None:
    prices = sp500_prices().iloc[-30:]
    built = build_table(prices, targets="levels")
    for target in TARGETS:
        expected = np.log(prices[target.removeprefix("log_").lower()].iloc[1:])
        np.testing.assert_allclose(built[target], expected, rtol=1e-15)


def test_time_delta_counts_calendar_days(table: pd.DataFrame) -> None:
    assert table["time_delta"].iloc[0] == 1
    assert table["time_delta"].sum() == (date(2015, 12, 31) - date(1950, 1, 3)).days
    # The exchange was closed from 2001-09-11 to the 17th.
    assert table.loc["2001-09-17", "time_delta"] == 7


def test_celestial_columns_equal_sky_table(table: pd.DataFrame) -> None:
    rows = [0, 5000, 16605]
    sky = sky_table(pd.DatetimeIndex(table.index[rows]))
    np.testing.assert_allclose(table.iloc[rows, 5:], sky, rtol=1e-9, atol=1e-11)


def test_written_digits_are_sufficient(table: pd.DataFrame) -> None:
    built = build_table(sp500_prices())
    # Half a unit of the last digit, 5e-10: a hundredth of the rounding to float32 that the model applies.
    np.testing.assert_allclose(table, built, rtol=0.5 * 10 ** (1 - DIGITS), atol=0)
    # In standard deviations, as scaled for training. The speeds of the mean nodes are a constant and a drift
    # of 2e-8 degrees a day; the file keeps three digits of that drift.
    worst = (table - built).abs().max() / built.std()
    nodes = ["dyn_Mean Rahu_speed", "dyn_Mean Ketu_speed"]
    assert worst[nodes].max() < 1e-3
    assert worst.drop(nodes).max() < 1e-7


@pytest.mark.parametrize("rows", [1, 7109])
def test_rows_selects_last_rows(full: BuildReport, tmp_path: Path, rows: int) -> None:
    report, prices = build_file(tmp_path / "last.csv", rows=rows), sp500_prices()
    assert report.rows == rows
    assert report.base_price == prices["close"].iloc[-rows - 1]
    assert report.first_date == prices.index[-rows].date()
    last = full.path.read_text().splitlines()[-rows:]
    assert report.path.read_text().splitlines()[1:] == last


@pytest.mark.parametrize(("rows", "available"), [(0, 3), (-1, 3), (4, 3)])
def test_unavailable_rows_raise(tmp_path: Path, prices_csv: Path, rows: int, available: int) -> None:
    with pytest.raises(DataError, match=f"{rows} rows asked for.* 1 to {available} rows"):
        build_file(tmp_path / "out.csv", prices_csv, rows=rows)
    assert os.listdir(tmp_path) == ["prices.csv"]


def test_rebuild_is_identical_for_any_number_of_threads_and_instruction_set(tmp_path: Path) -> None:
    script = "import sys; from pgat_fast.data.build import build_file; build_file(sys.argv[1], rows=8000)"
    # Without these, glibc and numpy use other implementations of sines, whose last bits differ.
    basic = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F", "NPY_DISABLE_CPU_FEATURES": "AVX512F X86_V4"}
    contents = []
    for threads, instruction_set in (("1", {}), ("4", basic)):
        out = tmp_path / f"{threads}.csv"
        count = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        environment = os.environ | count | instruction_set | {"PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(out)], check=True, env=environment)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]


def test_user_prices_are_built_and_logged(tmp_path: Path, prices_csv: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pgat_fast"):
        report = build_file(tmp_path / "out.csv", prices_csv)
    assert "3 rows, 2020-01-03 to 2020-01-07" in caplog.text
    built = pd.read_csv(report.path, index_col="date")
    assert built.index.tolist() == ["2020-01-03", "2020-01-06", "2020-01-07"]
    assert built["time_delta"].tolist() == [1, 3, 1]
    np.testing.assert_allclose(built["log_High"], np.log([13 / 11, 14 / 12, 15 / 13]), rtol=1e-9)


def test_build_does_not_use_network(tmp_path: Path, prices_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert build_file(tmp_path / "out.csv", prices_csv).rows == 3
    assert build_file(tmp_path / "sp500.csv", rows=2).rows == 2


def test_failed_write_keeps_previous_file(tmp_path: Path, prices_csv: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("previous")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The operating system stops the write after 1,000 bytes, as with a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"out\.csv: cannot be written"):
            build_file(out, prices_csv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_text() == "previous"
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "prices.csv"]


def test_unwritable_path_is_named(tmp_path: Path, prices_csv: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: cannot be written"):
        build_file(tmp_path / "folder", prices_csv)
    with pytest.raises(DataError, match=r"out\.csv: cannot be written"):
        build_file(prices_csv / "out.csv", prices_csv)
    assert sorted(os.listdir(tmp_path)) == ["folder", "prices.csv"]


def test_prices_are_not_overwritten(prices_csv: Path) -> None:
    with pytest.raises(DataError, match="this is the file of prices"):
        build_file(prices_csv, prices_csv)
    assert prices_csv.read_text() == PRICES_CSV
    with pytest.raises(DataError, match="the file does not exist"):
        build_file(prices_csv, prices_csv.with_name("absent.csv"))
    beside = prices_csv.rename(prices_csv.with_name("out.csv.note.json"))
    with pytest.raises(DataError, match="this is the file of prices"):
        build_file(prices_csv.with_name("out.csv"), beside)
    assert os.listdir(prices_csv.parent) == [beside.name]


def test_prices_before_ephemeris_raise_with_date() -> None:
    prices = sp500_prices().iloc[:5].shift(-20000, freq="D")
    with pytest.raises(DataError, match=r"1895-04-\d\d lies outside the ephemeris"):
        build_table(prices)


def test_unwritable_note_suggests_base_price_setting(tmp_path: Path, prices_csv: Path) -> None:
    (tmp_path / "out.csv.note.json").mkdir()
    with pytest.raises(DataError, match=r"out\.csv\.note\.json: cannot be written.*set data\.base_price to 11\.0"):
        build_file(tmp_path / "out.csv", prices_csv)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


def test_as_written_equals_values_read_from_file(full: BuildReport, table: pd.DataFrame) -> None:
    built = build_table(sp500_prices(), rows=50)
    assert np.array_equal(as_written(built.to_numpy()), table.iloc[-50:].to_numpy(np.float64))
    assert not np.signbit(as_written(np.array([-0.0]))).any()


def test_one_day_of_prices_and_unknown_targets_raise() -> None:
    with pytest.raises(DataError, match="fewer than two days"):
        build_table(sp500_prices().iloc[:1])
    unknown_kind: Literal["returns"] = "prices"  # type: ignore[assignment]
    with pytest.raises(DataError, match="'prices': choose 'returns' or 'levels'"):
        build_table(sp500_prices(), targets=unknown_kind)
