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
    """The file of the whole S&P 500 history, in a folder that did not exist."""
    return build_file(tmp_path_factory.mktemp("build") / "data" / "full.csv")


@pytest.fixture(scope="module")
def table(full: BuildReport) -> pd.DataFrame:
    """What the file of `full` holds, as a reader sees it."""
    return pd.read_csv(full.path, index_col="date", parse_dates=True)


@pytest.fixture
def prices_csv(tmp_path: Path) -> Path:
    path = tmp_path / "prices.csv"
    path.write_text(PRICES_CSV)
    return path


def test_the_header_is_date_and_the_columns_in_order(full: BuildReport) -> None:
    with full.path.open(newline="") as file:
        assert file.readline() == "date," + ",".join(COLUMNS) + "\n"


def test_every_line_has_119_fields_and_a_line_feed(full: BuildReport) -> None:
    content = full.path.read_bytes()
    assert b"\r" not in content
    lines = content.split(b"\n")
    assert lines.pop() == b""
    assert {line.count(b",") for line in lines} == {118}


def test_the_full_history_has_16606_rows_of_finite_numbers(full: BuildReport, table: pd.DataFrame) -> None:
    assert table.shape == (16606, 118)
    assert (table.dtypes.drop("time_delta") == np.float64).all()
    assert np.isfinite(table.to_numpy()).all()
    assert table.index.is_monotonic_increasing
    assert table.index.is_unique
    assert table.index[0] == pd.Timestamp(1950, 1, 4)


def test_the_report_describes_the_file(full: BuildReport) -> None:
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
    # The exchange stayed shut from 2001-09-11 to the 17th.
    assert table.loc["2001-09-17", "time_delta"] == 7


def test_the_sky_is_that_of_each_row(table: pd.DataFrame) -> None:
    rows = [0, 5000, 16605]
    sky = sky_table(pd.DatetimeIndex(table.index[rows]))
    np.testing.assert_allclose(table.iloc[rows, 5:], sky, rtol=1e-9, atol=1e-11)


def test_the_digits_written_do_no_harm(table: pd.DataFrame) -> None:
    built = build_table(sp500_prices())
    # Half a unit of the last digit, 5e-10: a hundredth of the rounding to float32 that the model applies.
    np.testing.assert_allclose(table, built, rtol=0.5 * 10 ** (1 - DIGITS), atol=0)
    # In standard deviations, as scaled for training. The speeds of the mean nodes are a constant and a drift
    # of 2e-8 degrees a day: of that drift the digits keep three.
    worst = (table - built).abs().max() / built.std()
    nodes = ["dyn_Mean Rahu_speed", "dyn_Mean Ketu_speed"]
    assert worst[nodes].max() < 1e-3
    assert worst.drop(nodes).max() < 1e-7


@pytest.mark.parametrize("rows", [1, 7109])
def test_rows_keeps_the_last(full: BuildReport, tmp_path: Path, rows: int) -> None:
    report = build_file(tmp_path / "last.csv", rows=rows)
    assert report.rows == rows
    last = full.path.read_text().splitlines()[-rows:]
    assert report.path.read_text().splitlines()[1:] == last


@pytest.mark.parametrize(("rows", "available"), [(0, 3), (-1, 3), (4, 3)])
def test_rows_that_are_not_there_are_refused(tmp_path: Path, prices_csv: Path, rows: int, available: int) -> None:
    with pytest.raises(DataError, match=f"{rows} rows asked for.* 1 to {available} rows"):
        build_file(tmp_path / "out.csv", prices_csv, rows=rows)
    assert os.listdir(tmp_path) == ["prices.csv"]


def test_a_rebuild_has_the_same_bytes_whatever_the_number_of_threads(tmp_path: Path) -> None:
    script = "import sys; from pgat_fast.data.build import build_file; build_file(sys.argv[1], rows=3000)"
    contents = []
    for threads in ("1", "4"):
        out = tmp_path / f"{threads}.csv"
        count = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        environment = os.environ | count | {"PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", script, str(out)], check=True, env=environment)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]


def test_a_users_prices_are_built_the_same_way(tmp_path: Path, prices_csv: Path) -> None:
    report = build_file(tmp_path / "out.csv", prices_csv)
    built = pd.read_csv(report.path, index_col="date")
    assert built.index.tolist() == ["2020-01-03", "2020-01-06", "2020-01-07"]
    assert built["time_delta"].tolist() == [1, 3, 1]
    np.testing.assert_allclose(built["log_High"], np.log([13 / 11, 14 / 12, 15 / 13]), rtol=1e-9)


def test_nothing_asks_the_network(tmp_path: Path, prices_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert build_file(tmp_path / "out.csv", prices_csv).rows == 3
    assert build_file(tmp_path / "sp500.csv", rows=2).rows == 2


def test_the_build_is_logged(tmp_path: Path, prices_csv: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pgat_fast"):
        build_file(tmp_path / "out.csv", prices_csv)
    assert "3 rows, 2020-01-03 to 2020-01-07" in caplog.text


def test_a_write_that_fails_leaves_the_previous_file_and_nothing_else(tmp_path: Path, prices_csv: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("previous")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The operating system ends the write after 1,000 bytes, as a full disk does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"out\.csv: cannot be written"):
            build_file(out, prices_csv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_text() == "previous"
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "prices.csv"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, prices_csv: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="folder: cannot be written"):
        build_file(tmp_path / "folder", prices_csv)
    with pytest.raises(DataError, match=r"out\.csv: cannot be written"):
        build_file(prices_csv / "out.csv", prices_csv)
    assert sorted(os.listdir(tmp_path)) == ["folder", "prices.csv"]


def test_the_prices_are_not_overwritten(prices_csv: Path) -> None:
    with pytest.raises(DataError, match="this is the file of prices"):
        build_file(prices_csv, prices_csv)
    assert prices_csv.read_text() == PRICES_CSV
    with pytest.raises(DataError, match="no such file"):
        build_file(prices_csv, prices_csv.with_name("absent.csv"))


def test_prices_before_the_ephemeris_are_refused_with_the_date() -> None:
    prices = sp500_prices().iloc[:5].shift(-20000, freq="D")
    with pytest.raises(DataError, match=r"1895-04-\d\d lies outside the ephemeris"):
        build_table(prices)


def test_a_note_that_cannot_be_written_says_what_to_set_instead(tmp_path: Path, prices_csv: Path) -> None:
    (tmp_path / "out.csv.note.json").mkdir()
    with pytest.raises(DataError, match=r"out\.csv\.note\.json: cannot be written.*set data\.base_price to 11\.0"):
        build_file(tmp_path / "out.csv", prices_csv)
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4


def test_prices_in_the_place_of_the_note_are_not_overwritten(tmp_path: Path) -> None:
    prices = tmp_path / "out.csv.note.json"
    prices.write_text(PRICES_CSV)
    with pytest.raises(DataError, match="this is the file of prices"):
        build_file(tmp_path / "out.csv", prices)
    assert os.listdir(tmp_path) == ["out.csv.note.json"]


def test_rounding_gives_the_numbers_that_a_reader_of_the_file_finds(full: BuildReport, table: pd.DataFrame) -> None:
    built = build_table(sp500_prices(), rows=50)
    assert np.array_equal(as_written(built.to_numpy()), table.iloc[-50:].to_numpy(np.float64))
    assert not np.signbit(as_written(np.array([-0.0]))).any()


def test_one_day_of_prices_is_too_few() -> None:
    with pytest.raises(DataError, match="fewer than two days"):
        build_table(sp500_prices().iloc[:1])


def test_unknown_targets_are_refused() -> None:
    wrong: Literal["returns"] = "prices"  # type: ignore[assignment]
    with pytest.raises(DataError, match="'prices': choose 'returns' or 'levels'"):
        build_table(sp500_prices(), targets=wrong)


def test_the_report_holds_the_close_before_the_first_row(tmp_path: Path) -> None:
    prices = sp500_prices()
    report = build_file(tmp_path / "short.csv", rows=30)
    assert report.base_price == prices["close"].iloc[-31]
    assert prices.index[-30].date() == report.first_date
