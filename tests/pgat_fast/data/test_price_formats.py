"""Formats of price files that are recognised, and what has two readings and is refused."""

import bz2
import gzip
import io
import logging
import lzma
import zipfile
from collections.abc import Callable
from datetime import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pgat_fast.data.price_dates import Stamps, days_of_local_midnights, parse_dates
from pgat_fast.data.price_format import PriceOptions
from pgat_fast.data.price_numbers import UndecidedNumberError, number_form, parse_number
from pgat_fast.data.prices import Remarks, read_prices
from pgat_fast.errors import DataError

DAYS = pd.to_datetime(["2021-03-10", "2021-03-11", "2021-03-12", "2021-03-15", "2021-03-16", "2021-03-17"])
BARS = np.array([[1204.5, 1250.25, 1199.75, 1234.5]]) + np.arange(6)[:, None] * 3.25
EXPECTED = pd.DataFrame(
    BARS, index=pd.DatetimeIndex(DAYS.as_unit("s"), name="date"), columns=["open", "high", "low", "close"]
)


def grouped(value: float, mark: str, decimal: str) -> str:
    """Write `value` with two decimals and a thousands separator."""
    return f"{value:,.2f}".replace(",", "_").replace(".", decimal).replace("_", mark)


def text(
    date: str | Callable[[pd.Timestamp], str] = "%Y-%m-%d",
    number: Callable[[float], str] = lambda value: f"{value:.2f}",
    separator: str = ",",
    header: str = "Date,Open,High,Low,Close,Volume",
) -> str:
    rows = [header.replace(",", separator)]
    for day, bar in zip(DAYS, BARS, strict=True):
        written = day.strftime(date) if isinstance(date, str) else date(day)
        rows.append(separator.join([written, *map(number, bar), "1000"]))
    return "\n".join(rows) + "\n"


def since_1970(per_second: int, zone: str = "UTC") -> Callable[[pd.Timestamp], str]:
    return lambda day: str(int(day.tz_localize(zone).timestamp()) * per_second)


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, text())
    return content.getvalue()


def read(folder: Path, content: str | bytes, options: PriceOptions | None = None) -> tuple[pd.DataFrame, str]:
    """Return the prices of a file with `content`, and what it was taken for."""
    path = folder / "prices.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    remarks = Remarks()
    return read_prices(path, options, remarks), " ".join([*remarks.notes, *remarks.warnings])


GERMAN = text("%d.%m.%Y", lambda value: grouped(value, ".", ","), ";", "Datum,Eröffnung,Hoch,Tief,Schluß,Stück")
SERIES_NAMES = "Date,X.Open,X.High,X.Low,X.Close,X.Volume"

# The content, and words of the line that describes it; none for a plain file.
RECOGNISED: dict[str, tuple[str | bytes, str]] = {
    "plain": (text(), ""),
    "lines above the header": ('Prices of X\n"Source: Y, Z"\n\n' + text(), "header on line 4"),
    "spreadsheet's line": ("sep=;\n" + text(separator=";"), "header on line 2; fields separated by semicolons"),
    "separators at the ends of rows": (text().replace("1000\n", "1000,\n"), ""),
    "tabs": (text(separator="\t"), "tabs"),
    "bars": (text(separator="|"), "bars"),
    "German": (GERMAN, "day/month/year; decimal comma; thousands separator '.'"),
    "German code page": (GERMAN.encode("latin-1"), "Windows-1252"),
    "Swiss": (text(number=lambda value: grouped(value, "'", ".")), 'thousands separator "\'"'),
    "French": (text(number=lambda value: grouped(value, "\u202f", ","), separator=";"), "decimal comma"),
    "quoted thousands": (text(number=lambda value: f'"{value:,.2f}"'), "thousands separator ','"),
    "dollars": (text(number=lambda value: f"${value:.2f}"), "prices in $"),
    "euros": (text(number=lambda value: grouped(value, ".", ",") + " €", separator=";"), "prices in €"),
    "seconds": (text(since_1970(1)), "dates in seconds since 1970"),
    "milliseconds": (text(since_1970(10**3)), "milliseconds"),
    "microseconds": (text(since_1970(10**6)), "microseconds"),
    "nanoseconds": (text(since_1970(10**9)), "nanoseconds"),
    "month first": (text("%m/%d/%Y"), "month/day/year"),
    "packed index without zeros in dates": (
        gzip.compress(
            text(lambda day: f"{day.month}/{day.day}/{day.year}", header="Date,Open,High,Low,Close,Adj Close")
            .replace("1000\n", "11.5\n")
            .encode()
        ),
        "read as gzip; dates month/day/year",
    ),
    "day first with a time": (text("%d/%m/%Y 4:00 PM"), "day/month/year"),
    "weekday": (text('"%A, %B %d, %Y"'), ""),
    "zone": (text("%Y-%m-%dT00:00:00-05:00"), ""),
    "local midnights in UTC": (
        text(lambda day: str(day.tz_localize("Europe/Berlin").tz_convert("UTC"))),
        "local midnights",
    ),
    "local midnights since 1970": (text(since_1970(1000, "Asia/Tokyo")), "stamps at 15:00, from Sundays to Thursdays"),
    "gzip": (gzip.compress(text().encode()), "gzip"),
    "bzip2": (bz2.compress(text().encode()), "bzip2"),
    "xz": (lzma.compress(text().encode()), "xz"),
    "zip": (zipped("x.csv", "__MACOSX/._x.csv"), "zip"),
    "UTF-16": (text().encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (text(separator="\t").encode("utf-16-be"), "UTF-16-BE; fields separated by tabs"),
    "ticker and date below": (
        text(header="Price,Open,High,Low,Close,Volume").replace("\n", "\nTicker,X,X,X,X,X\nDate,,,,,\n", 1),
        "a header of 3 lines; columns date='Price'",
    ),
    "ticker above": (
        "Ticker,X,X,X,X,X\n" + text(header="Price,Open,High,Low,Close,Volume").replace("\n", "\nDate,,,,,\n", 1),
        "header on line 2",
    ),
    "index without a name": (text(header=",Open,High,Low,Close,Volume"), "date=''"),
    "numbered": (text(header="timestamp,1. open,2. high,3. low,4. close,5. volume"), "close='4. close'"),
    "series": (text(header=SERIES_NAMES), "close='X.Close'"),
    "series behind": (text(header="Date,Open_X,High_X,Low_X,Close_X,Volume_X"), "close='Close_X'"),
    "close called price": (text(header="Date,Open,High,Low,Price,Vol."), "close='Price'"),
    "angle brackets": (text("%Y.%m.%d", header="<DATE>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>"), "close='<CLOSE>'"),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_format_is_recognised_and_described(tmp_path: Path, name: str) -> None:
    content, words = RECOGNISED[name]
    prices, description = read(tmp_path, content)
    pd.testing.assert_frame_equal(prices, EXPECTED, check_exact=True)
    assert words in description
    assert bool(words) == bool(description)


@pytest.mark.parametrize(
    ("first", "last", "freq", "clock"),
    [
        ("2020-01-31", "2021-12-31", "ME", time(16)),  # closing times, not midnights elsewhere
        ("2020-01-05", "2020-12-27", "W-SUN", time(23, 59, 59)),
        ("2020-01-05", "2020-06-30", "C", time(17, 25)),
    ],
)
def test_closing_times_do_not_move_days(first: str, last: str, freq: str, clock: time) -> None:
    mask = {"weekmask": "Sun Mon Tue Wed Thu"} if freq == "C" else {}
    dates = pd.bdate_range(first, last, freq=freq, **mask) if freq == "C" else pd.date_range(first, last, freq=freq)
    days = [day.date() for day in dates]
    assert days_of_local_midnights(Stamps(days, [clock] * len(days))) == (days, "")


@pytest.mark.parametrize(
    ("stamp", "words"),
    [
        ("2020-01-02 99:99", "holds no time of a day"),
        ("2020-01-02 13:00 pm", "holds no time of a day"),
        ("202001020930", "or a date with a time of day"),
    ],
)
def test_impossible_and_ambiguous_times_are_refused(stamp: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse_dates([stamp], lambda i: f"line {i + 2}")


def test_series_with_two_closes_is_refused(tmp_path: Path) -> None:
    content = text(header="Date,Open_X,High_X,Low_X,Close_X,Close_X")
    with pytest.raises(DataError, match="more than one column close"):
        read(tmp_path, content)


def test_description_is_one_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    read(tmp_path, GERMAN)
    assert [record.levelno for record in caplog.records] == [logging.INFO]


AMBIGUOUS_DATES = "Date,Open,High,Low,Close\n01/02/2024,10,12,9,11\n05/02/2024,11,13,10,12\n"
WHOLE = text(number=lambda value: f"{value:,.0f}".replace(",", "."), separator=";")

REFUSED: dict[str, tuple[str | bytes, list[str]]] = {
    "day or month": (AMBIGUOUS_DATES, ["line 2", "no day of the file is above 12", "--date-format"]),
    "day and month": (
        AMBIGUOUS_DATES.replace("01/02", "14/02").replace("05/02", "02/15"),
        ["'14/02/2024' has the day first and '02/15/2024' the month"],
    ),
    "two digits of a year": (text("%d/%m/%y"), ["line 2", "--date-format"]),
    "days of a spreadsheet": (text(lambda day: str((day - pd.Timestamp(1899, 12, 30)).days)), ["a spreadsheet"]),
    "fraction or thousands": (WHOLE, ["'1.200' may be 1.200 or 1200", "--decimal"]),
    "quoted fraction or thousands": (text(number=lambda value: f'"{value:,.0f}"'), ["'1,200' may be 1.200 or 1200"]),
    "both decimal marks": (
        text(separator=";").replace("1207.75", "1207,75"),
        ["line 3, column open", "different decimal marks"],
    ),
    "two series": (
        "Date,X.Open,X.High,X.Low,X.Close,Y.Open,Y.High,Y.Low,Y.Close\n2024-01-02,1,1,1,1,1,1,1,1\n",
        ["prices of 2 series (x, y)"],
    ),
    "two series in a download": ("Price,Close,Close,High,High,Low,Low,Open,Open\n", ["more than one column open"]),
    "two files in a zip": (zipped("a.csv", "b.csv"), ["holds 2 files (a.csv, b.csv)"]),
    "spreadsheet": (zipped("[Content_Types].xml"), ["a spreadsheet"]),
    "damaged gzip": (gzip.compress(text().encode())[:-9], ["gzip", "cannot be unpacked"]),
    "web page": ("<html><body>Too many requests</body></html>\n", ["no column date, open"]),
    "rows within days": (
        text("%Y-%m-%d 09:30").replace("2021-03-11 09", "2021-03-10 10"),
        ["2021-03-10 is on line 2 already", "10:30:00", "combine"],
    ),
    "footer": (text() + "Source: Y\n", ["line 8: 1 fields"]),
    "percent": (text(number=lambda value: f"{value:.2f}%"), ["line 2, column open", "not a number"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_two_readings_or_none_is_refused(tmp_path: Path, name: str) -> None:
    content, words = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    for word in ("prices.csv", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (text("%d/%m/%y"), PriceOptions(date_format="%d/%m/%y")),
        (text(since_1970(1000)), PriceOptions(date_format="ms")),
        (text(header="Tag,A,B,C,D,E"), PriceOptions(columns=dict(zip(["date", *EXPECTED], ["Tag", "A", "B", "C", "D"],
        strict=True)))), (text(header="Date,Open,High,Low,Last,Close"), PriceOptions(columns={"close": "Last"})),
        (text(separator="#"), PriceOptions(separator="#")),
        (text(separator=";", number=lambda value: f"{value:.3f}".replace(".", ",")), PriceOptions(decimal=",")),
    ],
)  # fmt: skip
def test_options_decide(tmp_path: Path, content: str, options: PriceOptions) -> None:
    pd.testing.assert_frame_equal(read(tmp_path, content, options)[0], EXPECTED, check_exact=True)


def test_decimal_option_gives_either_reading(tmp_path: Path) -> None:
    readings = [read(tmp_path, WHOLE, PriceOptions(decimal=mark))[0]["open"].iloc[0] for mark in ".,"]
    assert readings == [1.204, 1204]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": {"volume": "V"}}, "name one of date"),
        ({"decimal": ";"}, "give . or ,"),
        ({"separator": "ab"}, "give one mark"),
        ({"columns": {"open": "absent"}}, "no column 'absent'"),
        ({"date_format": "%Y"}, "--date-format"),
    ],
)
def test_wrong_options_raise(tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(tmp_path, text(), PriceOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cells", "separator", "others", "decimal"),
    [
        (["1.234", "99.5"], ";", [], "."),
        (["1.234", "99,5"], ";", [], ","),
        (["1.234", "985"], ";", ["3.456.789"], ","),
        (["1.234"], ",", [], "."),  # a comma between fields is no decimal mark
        (["1,234", "12,5"], ",", [], ","),
        (["12,34,567.5"], ",", [], "."),
        (["0.123"], ";", [], "."),
        (["1.2345"], ";", [], "."),
        (["1234", "985"], ";", [], "."),
        (["1 234,5"], ";", [], ","),
        (["1.234"], ";", [], None),
        (["1,234", "985"], ",", [], None),
    ],
)
def test_all_numbers_of_a_file_decide_the_decimal_mark(
    cells: list[str], separator: str, others: list[str], decimal: str | None
) -> None:
    if decimal is None:
        with pytest.raises(UndecidedNumberError, match="may be"):
            number_form(cells, others, separator)
    else:
        assert number_form(cells, others, separator).decimal == decimal


@pytest.mark.parametrize(
    ("written", "decimal", "value"),
    [
        ("1.234", ",", 1234),
        ("1.234", ".", 1.234),
        ("1.234.567,8", ",", 1234567.8),
        ("1,234,567.8", ".", 1234567.8),
        ("12.34", ",", None),  # no group of three
        ("1,23", ".", None),
        ("1.234,567.8", ".", None),
        ("1'234.5", ".", 1234.5),
        ("USD 1,234.5", ".", 1234.5),
        ("1.5e3", ".", 1500),
        ("1_000", ".", None),
        ("(12)", ".", None),
        ("", ".", None),
    ],
)
def test_number_is_read_exactly_or_not_at_all(written: str, decimal: str, value: float | None) -> None:
    assert parse_number(written, decimal) == value
