"""Prices: files that are read, and faults that raise an error with their location."""

import logging
import sys
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgat_fast.data.prices import PRICES, read_prices, sp500_prices
from pgat_fast.errors import DataError

HEADER = "Date,Open,High,Low,Close,Adj Close,Volume\n"
GOOD = HEADER + "2020-01-02,10,12,9,11,11,500\n2020-01-03,11,13,10,12,12,600\n2020-01-06,12,14,11,13,13,700\n"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "prices.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_sp500_is_complete_and_in_order() -> None:
    prices = sp500_prices()
    assert prices.shape == (16607, 4)
    assert prices.columns.tolist() == list(PRICES)
    assert prices.index.name == "date"
    assert prices.index.is_monotonic_increasing
    assert prices.index.is_unique
    assert (prices.dtypes == np.float64).all()
    # First and last line of the package's file.
    assert prices.index[[0, -1]].tolist() == [pd.Timestamp(1950, 1, 3), pd.Timestamp(2015, 12, 31)]
    assert prices.iloc[0].tolist() == [16.66, 16.66, 16.66, 16.66]
    assert prices.iloc[-1].tolist() == [2060.5901, 2062.54, 2043.62, 2043.9399]


def test_sp500_opens_repeat_closes_as_documented() -> None:
    prices = sp500_prices()
    flat = (prices["high"] == prices["low"]).to_numpy()
    year = pd.DatetimeIndex(prices.index).year.to_numpy()
    assert flat[year < 1962].all()
    repeats = prices["open"].to_numpy()[1:] == prices["close"].to_numpy()[:-1]
    assert repeats[(year[1:] >= 1962) & (year[1:] < 2006)].mean() == pytest.approx(0.84, abs=0.005)
    assert repeats[year[1:] >= 2006].mean() == pytest.approx(0.12, abs=0.005)


def test_sp500_without_package_suggests_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "great_tables", None)
    with pytest.raises(DataError, match=r'pip install "pgat-fast\[data\]"'):
        sp500_prices()


def test_header_case_and_extra_columns_are_ignored(tmp_path: Path) -> None:
    prices = read_prices(write(tmp_path, GOOD))
    assert prices.columns.tolist() == list(PRICES)
    assert prices.index.tolist() == [pd.Timestamp(2020, 1, day) for day in (2, 3, 6)]
    assert prices.iloc[1].tolist() == [11, 13, 10, 12]
    assert (prices.dtypes == np.float64).all()


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("\n", "\n\n") + "  \n",
        GOOD.replace("Date,Open", '"Date ", OPEN'),
        GOOD.replace("2020-01-03,11", '"2020-01-03",  1.1e1 '),
    ],
    ids=["byte order mark", "Windows line ends", "empty lines", "spaces in the header", "quotes and spaces"],
)
def test_harmless_variants_give_same_prices(tmp_path: Path, content: str) -> None:
    expected = read_prices(write(tmp_path, GOOD))
    pd.testing.assert_frame_equal(read_prices(write(tmp_path, content)), expected, check_exact=True)


@pytest.mark.parametrize(
    "form",
    [
        "2020-01-03", "2020/01/03", "2020.1.3", "20200103", "2020-01-03T14:30:00Z", "2020-01-03 09:30",
        "2020-01-03 00:00:00-05:00", "3-Jan-2020", "03 January 2020", "Jan 3, 2020", "January 03 2020",
        "JAN. 3, 2020",
    ],
)  # fmt: skip
def test_unambiguous_dates_are_read(tmp_path: Path, form: str) -> None:
    prices = read_prices(write(tmp_path, GOOD.replace("2020-01-03", f'"{form}"')))
    assert prices.index[1] == pd.Timestamp(2020, 1, 3)


def test_newest_first_file_is_reversed_with_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header, *rows = GOOD.splitlines()
    backwards = "\n".join([header, *reversed(rows)]) + "\n"
    expected = read_prices(write(tmp_path, GOOD))
    assert not caplog.records
    pd.testing.assert_frame_equal(read_prices(write(tmp_path, backwards)), expected)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "prices.csv runs from the newest day to the oldest" in caplog.text


def test_missing_final_line_break_is_read_with_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read_prices(write(tmp_path, GOOD.rstrip("\n")))) == 3
    assert "its last number is wrong" in caplog.text


# Each fault, and the words that the message must contain besides the name of the file.
FAULTS: dict[str, tuple[str | bytes, list[str]]] = {
    "no close": (GOOD.replace("Close", "Last"), ["no column close", "'Open'", "'Adj Last'"]),
    "no header": (GOOD.removeprefix(HEADER), ["no column date, open, high, low, close", "'2020-01-02'"]),
    "a column twice": (GOOD.replace("Volume", "close"), ["more than one column close"]),
    "no rows": (HEADER, ["no rows"]),
    "empty file": ("", ["empty"]),
    "not text": (b"\x1f\x8b\x08\x00\xff\xfe\n", ["gzip", "cannot be unpacked"]),
    "not text further down": (GOOD.encode() + b"2020-01-07,\xff", ["line 5", "2 fields"]),
    "zero bytes": (b"\x00" * 100, ["prices.csv"]),
    "a field too many in every row": (GOOD.replace("00\n", "00,1\n"), ["line 2", "8 fields", "7"]),
    "a field too few": (GOOD.replace("11,13,10,12,12,600", "11,13,10,12,12"), ["line 3", "6 fields"]),
    "cut off": (GOOD[:-10], ["line 4", "5 fields"]),
    "open quotation mark": (GOOD.replace("2020-01-03", '"2020-01-03'), ["line 3"]),
    "quotation mark over two lines": (
        GOOD.replace("2020-01-03", '"2020-01-03').replace("13,13,700", '13,13,"700'),
        ["line 3"],
    ),
    "text after a quotation mark": (GOOD.replace("2020-01-03", '"2020-01-0"3'), ["line 3", "CSV"]),
    "empty date": (GOOD.replace("2020-01-03", ""), ["line 3", "column date", "''"]),
    "no date": (GOOD.replace("2020-01-03", "yesterday"), ["line 3", "column date", "'yesterday'", "YYYY-MM-DD"]),
    "no such day": (GOOD.replace("2020-01-03", "2020-02-30"), ["line 3", "column date", "'2020-02-30'"]),
    "day or month first": (GOOD.replace("2020-01-03", "03/01/2020"), ["line 3", "whether day or month comes first"]),
    "year of two digits": (
        GOOD.replace("2020-01-03", "03-01-20"),
        ["line 3", "whether day or month comes first", "%m/%d/%y"],
    ),
    "seconds since 1970": (GOOD.replace("2020-01-03", "1578009600"), ["line 3", "'1578009600'"]),
    "repeated day": (GOOD.replace("2020-01-03", "2020-01-02"), ["line 3", "2020-01-02", "line 2"]),
    "unsorted": (GOOD.replace("2020-01-06", "2020-01-01"), ["line 4", "2020-01-01 follows 2020-01-03"]),
    "unsorted backwards": (
        GOOD.replace("2020-01-02", "2020-01-05"),
        ["line 4", "2020-01-06 follows 2020-01-03", "newest to oldest"],
    ),
    "text for a price": (GOOD.replace("11,13,10,12,", "11,x,10,12,"), ["line 3", "column high", "'x'"]),
    "missing price": (GOOD.replace("11,13,10,12,", "11,13,,12,"), ["line 3", "column low", "missing"]),
    "two currencies": (GOOD.replace("11,13,10,12,", "$11,13,€10,12,"), ["line 3", "$ and €"]),
    "thousands separator": (GOOD.replace("11,13,10,12,", '11,"1,300",10,12,'), ["line 3", "column high"]),
    "underscore": (GOOD.replace("11,13,10,12,", "11,1_3,10,12,"), ["line 3", "column high", "'1_3'"]),
    "digits of another script": (GOOD.replace("11,13,10,12,", "11,\u0661\u0663,10,12,"), ["line 3", "high"]),
    "not a number": (GOOD.replace("11,13,10,12,", "11,13,10,nan,"), ["line 3", "column close", "'nan'"]),
    "infinite": (GOOD.replace("11,13,10,12,", "11,inf,10,12,"), ["line 3", "column high", "'inf'"]),
    "too large": (GOOD.replace("11,13,10,12,", "11,1e999,10,12,"), ["line 3", "column high", "not a finite"]),
    "zero": (GOOD.replace("11,13,10,12,", "0,13,10,12,"), ["line 3", "column open", "not positive"]),
    "high below close": (GOOD.replace("11,13,10,12,", "11,11.5,10,12,"), ["line 3", "column high", "close 12"]),
    "low above open": (GOOD.replace("11,13,10,12,", "11,13,11.5,12,"), ["line 3", "column low", "open 11"]),
    "high and low swapped everywhere": (
        GOOD.replace("High,Low", "Low,High"),
        ["line 2", "column high", "and 2 more such rows"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_raise_with_location(tmp_path: Path, fault: str) -> None:
    content, parts = FAULTS[fault]
    with pytest.raises(DataError) as caught:
        read_prices(write(tmp_path, content))
    for part in ("prices.csv", *parts):
        assert part in str(caught.value)


def test_fault_in_newest_first_file_keeps_line_number(tmp_path: Path) -> None:
    header, *rows = GOOD.splitlines()
    content = "\n".join([header, *reversed(rows)]) + "\n"
    with pytest.raises(DataError, match="line 2, column low"):
        read_prices(write(tmp_path, content.replace("12,14,11,13,", "12,14,12.5,13,")))


def test_path_without_regular_file_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv: the file does not exist: name a CSV file of prices"):
        read_prices(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="this is a directory"):
        read_prices(tmp_path)


@st.composite
def histories(draw: st.DrawFn) -> pd.DataFrame:
    """Draw valid prices: any gaps between days, any magnitude, low <= open, close <= high."""
    gaps = draw(st.lists(st.integers(1, 400), min_size=1, max_size=8))
    price = st.floats(1e-6, 1e9)
    bars = [sorted(draw(st.tuples(price, price, price, price))) for _ in gaps]
    ends = [draw(st.booleans()) for _ in gaps]
    rows = [(b, d, a, c) if up else (c, d, a, b) for (a, b, c, d), up in zip(bars, ends, strict=True)]
    days = [date(1950, 1, 1) + timedelta(days=int(day)) for day in np.cumsum(gaps)]
    index = pd.DatetimeIndex(np.array(days, dtype="datetime64[s]"), name="date")
    return pd.DataFrame(rows, columns=list(PRICES), index=index)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories(), order=st.permutations(["date", *PRICES, "volume"]), backwards=st.booleans())
def test_any_valid_history_is_read_exactly(
    tmp_path: Path, history: pd.DataFrame, order: list[str], backwards: bool
) -> None:
    rows = history.reset_index().assign(volume="n/a")[order]
    path = tmp_path / "history.csv"
    (rows[::-1] if backwards else rows).to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_prices(path), history, check_exact=True)
