"""Frames of prices as pandas users have them."""

from collections.abc import Callable
from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from pgat_fast.data.build import build_table
from pgat_fast.data.price_format import PriceOptions
from pgat_fast.data.price_frames import prices_from_frame
from pgat_fast.data.prices import Remarks, sp500_prices
from pgat_fast.errors import DataError

PRICES = sp500_prices().iloc[-9:]
FRAME = PRICES.rename(columns=str.title).rename_axis(None)
COLUMN = FRAME.reset_index(names="Date")
Change = Callable[[], pd.DataFrame]


def with_levels(*levels: list[str]) -> pd.DataFrame:
    return FRAME.set_axis(pd.MultiIndex.from_arrays(levels), axis=1)


NAMES, TICKERS = ["Open", "High", "Low", "Close"], ["X"] * 4

ACCEPTED: dict[str, Change] = {
    "capitals": lambda: FRAME,
    "upper case and other columns": lambda: FRAME.rename(columns=str.upper).assign(Volume=1, **{"Adj Close": 2.0}),
    "zone": lambda: FRAME.tz_localize("America/New_York"),
    "UTC": lambda: FRAME.tz_localize("UTC"),
    "local midnights in UTC": lambda: FRAME.tz_localize("Europe/Berlin").tz_convert("UTC"),
    "closing times": lambda: FRAME.set_axis(FRAME.index + pd.Timedelta(hours=16)).tz_localize("America/New_York"),
    "column of days": lambda: COLUMN,
    "column of times with a zone": lambda: COLUMN.assign(Date=COLUMN["Date"].dt.tz_localize("Asia/Tokyo")),
    "column of text": lambda: COLUMN.assign(Date=COLUMN["Date"].dt.strftime("%m/%d/%Y")),
    "column of dates": lambda: COLUMN.assign(Date=[day.date() for day in COLUMN["Date"]]),
    "column of seconds": lambda: COLUMN.assign(Date=[int(day.timestamp()) for day in COLUMN["Date"]]),
    "index of text": lambda: FRAME.set_axis(FRAME.index.strftime("%Y-%m-%d")),
    "index of dates": lambda: FRAME.set_axis([date(*day.timetuple()[:3]) for day in FRAME.index]),
    "index of periods": lambda: FRAME.set_axis(pd.DatetimeIndex(FRAME.index).to_period("D")),
    "index with the ticker": lambda: FRAME.set_axis(pd.MultiIndex.from_product([["X"], FRAME.index])),
    "price and ticker": lambda: with_levels(NAMES, TICKERS),
    "ticker and price": lambda: with_levels(TICKERS, NAMES),
    "newest first": lambda: FRAME[::-1],
    "objects": lambda: FRAME.astype(object),
    "text": lambda: FRAME.astype(str),
    "German text": lambda: FRAME.map(lambda value: f"{value:.4f}".replace(".", ",")),
    "decimals": lambda: FRAME.map(lambda value: Decimal(repr(value))),
    "nullable": lambda: FRAME.astype("Float64"),
    "float32": lambda: FRAME.astype(np.float32),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_frame_is_read_and_not_changed(name: str) -> None:
    frame = ACCEPTED[name]()
    original = frame.copy(deep=True)
    prices = prices_from_frame(frame)
    tolerance = 1e-7 if name == "float32" else 0
    pd.testing.assert_frame_equal(prices, PRICES, rtol=tolerance, atol=0, check_freq=False)
    pd.testing.assert_frame_equal(frame, original)


REFUSED: dict[str, tuple[Change, str]] = {
    "two tickers": (
        lambda: pd.concat([with_levels(NAMES, TICKERS), with_levels(NAMES, ["Y"] * 4)], axis=1),
        "2 series",
    ),
    "one bar of two tickers": (lambda: with_levels(NAMES, [*TICKERS[:3], "Y"]), "2 series"),
    "missing object date": (
        lambda: FRAME.set_axis([pd.NaT, *FRAME.index.date[1:]]),
        "a date is missing",
    ),
    "no dates": (lambda: FRAME.reset_index(drop=True), "no dates"),
    "no close": (lambda: FRAME.drop(columns="Close"), "no column close"),
    "no rows": (lambda: FRAME.iloc[:0], "no rows"),
    "NaN": (lambda: FRAME.assign(Low=np.nan), "column low: the price is not a finite number"),
    "missing object": (lambda: FRAME.astype(object).assign(Low=None), "not a finite number"),
    "truth values": (lambda: FRAME.assign(Low=True), "type bool"),
    "words": (lambda: FRAME.astype(object).assign(Low="n/a"), "'n/a' is not a number"),
    "missing date": (lambda: FRAME.set_axis([pd.NaT, *FRAME.index[1:]]), "row 0: the date is missing"),
    "repeated day": (lambda: pd.concat([FRAME, FRAME]), "2015-12-18 is on row 0 already"),
    "unsorted": (lambda: FRAME.iloc[[0, 2, 1]], "sort them by date"),
    "ambiguous dates": (
        lambda: COLUMN.iloc[:2].assign(Date=["01/02/2024", "02/02/2024"]),
        "whether day or month comes first",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_frame_with_a_fault_is_refused(name: str) -> None:
    frame, words = REFUSED[name]
    with pytest.raises(DataError, match=words):
        prices_from_frame(frame(), "mine")


def test_options_decide_for_frames_too() -> None:
    remarks = Remarks()
    frame = COLUMN.iloc[:2].assign(Date=["01/02/2024", "02/02/2024"]).rename(columns={"Close": "Last", "Date": "Day"})
    options = PriceOptions(date_format="%d/%m/%Y", columns={"close": "Last"})
    days = prices_from_frame(frame, options=options, remarks=remarks).index
    assert days.tolist() == [pd.Timestamp(2024, 2, 1), pd.Timestamp(2024, 2, 2)]
    assert "close='Last'" in remarks.notes[0]


def test_table_is_built_from_any_of_these_frames() -> None:
    pd.testing.assert_frame_equal(build_table(COLUMN), build_table(PRICES))
