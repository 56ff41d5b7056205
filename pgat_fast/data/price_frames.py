"""Frames of prices as pandas users have them, brought into the form that `prices.read_prices` returns."""

from collections.abc import Sequence
from datetime import date, datetime, time
from typing import Any

import numpy as np
import pandas as pd

from pgat_fast.data.csv_file import FloatArray
from pgat_fast.data.price_columns import PRICES, match_columns
from pgat_fast.data.price_dates import Stamps, parse_dates
from pgat_fast.data.price_format import PriceOptions
from pgat_fast.data.price_numbers import UndecidedNumberError, number_form, parse_number
from pgat_fast.data.prices import Remarks, prices_of_rows
from pgat_fast.errors import DataError


def prices_from_frame(
    frame: pd.DataFrame, name: str = "the frame", options: PriceOptions | None = None, remarks: Remarks | None = None
) -> pd.DataFrame:
    """Return `frame` as `read_prices` returns a file; `frame` itself is not changed.

    The four prices are columns named as in a file, in any case and order, or the level of a column index that names
    them, if the other levels name one series. Dates are the index (days or times in any zone, periods, dates or text),
    or a column if the index holds none. Prices may be of any numeric type, or text. Rows may run backwards. A time of
    day is dropped, in the zone of the frame.

    Raises DataError as `read_prices` does; rows are named by their number, from 0.
    """
    options, remarks = options or PriceOptions(), remarks or Remarks()
    columns = _column_names(frame, name)
    match = match_columns(columns, options.columns)
    missing = [wanted for wanted in match.missing if wanted != "date"]
    shown = ", ".join(repr(column) for column in columns[:10])
    if match.groups:
        raise DataError(
            f"{name}: prices of {len(match.groups)} series ({', '.join(match.groups[:5])}): pass one of them"
        )
    if missing or set(match.repeated) & set(PRICES):
        fault = f"no column {', '.join(missing)}" if missing else f"more than one column {', '.join(match.repeated)}"
        raise DataError(f"{name}: {fault}: the columns are {shown}: name them {', '.join(PRICES)}")
    if not len(frame):
        raise DataError(f"{name}: the frame has no rows")
    named = [f"{price}={columns[match.position[price]]!r}" for price in PRICES]
    is_plain = all(columns[match.position[price]].strip().casefold() == price for price in PRICES)
    described = [] if is_plain else [f"columns {', '.join(named)}"]
    stamps, dates_from = _stamps(frame, match.position.get("date"), name, options)
    bars, numbers = _bars(frame, [match.position[price] for price in PRICES], name, options)
    described += [dates_from, stamps.described, *numbers]
    return prices_of_rows(stamps, bars, name, remarks, described)


def _column_names(frame: pd.DataFrame, name: str) -> list[str]:
    """Return the names of the columns; of several levels the one that names prices, if the others name one series."""
    if not isinstance(frame.columns, pd.MultiIndex):
        return [str(column) for column in frame.columns]
    levels = [[str(value) for value in frame.columns.get_level_values(level)] for level in range(frame.columns.nlevels)]
    level = max(range(len(levels)), key=lambda i: len(set(PRICES) & set(match_columns(list(set(levels[i]))).position)))
    position = match_columns(levels[level]).position
    names = {levels[level][position[price]] for price in PRICES if price in position}
    priced = [column for column, value in enumerate(levels[level]) if value in names]
    for other in range(len(levels)):
        series = sorted({levels[other][column] for column in priced})
        if other != level and len(series) > 1:
            raise DataError(
                f"{name}: prices of {len(series)} series ({', '.join(series[:5])}): pass the columns of one"
            )
    return levels[level]


def _stamps(frame: pd.DataFrame, column: int | None, name: str, options: PriceOptions) -> tuple[Stamps, str]:
    """Return the dates of the rows and, in words, where they are if not in the index."""
    index: Any = frame.index
    described = ""
    if isinstance(index, pd.MultiIndex):
        levels = [level for level in range(index.nlevels) if len(index.get_level_values(level).unique()) > 1]
        if len(levels) > 1:
            raise DataError(f"{name}: the index has {index.nlevels} levels: pass the rows of one series")
        index = index.get_level_values(levels[0] if levels else 0)
    is_dated = isinstance(index, pd.DatetimeIndex | pd.PeriodIndex)
    if not is_dated and column is not None:
        index = pd.Index(frame.iloc[:, column])
        described = f"dates from the column {frame.columns[column]!r}"
    elif isinstance(index, pd.RangeIndex):
        raise DataError(f"{name}: no dates: the index counts rows: set the dates as the index, or add a column date")
    if isinstance(index, pd.PeriodIndex):
        index = index.to_timestamp()
    if isinstance(index, pd.DatetimeIndex):
        return _from_times(index, name), described
    return _from_objects(index.tolist(), name, options, described)


def _from_times(index: pd.DatetimeIndex, name: str) -> Stamps:
    if index.hasnans:
        raise DataError(f"{name}, row {int(np.argmax(index.isna()))}: the date is missing: remove the row")
    local = index.tz_localize(None) if index.tz is not None else index
    days, times = list(local.date), list(local.time)
    # Midnights without a zone are days. With one, they are days too: those of the zone.
    return Stamps(days, [None] * len(days) if all(clock == time() for clock in times) else times)


def _from_objects(values: Sequence[Any], name: str, options: PriceOptions, described: str) -> tuple[Stamps, str]:
    """Read dates that are objects: text, numbers since 1970, dates, times."""
    if all(isinstance(value, date) for value in values):
        if any(pd.isna(value) for value in values):  # NaT is a date, too
            raise DataError(f"{name}: a date is missing: remove the row")
        if any(isinstance(value, datetime) for value in values):
            local = [pd.Timestamp(value).tz_localize(None) for value in values]
            return _from_times(pd.DatetimeIndex(local), name), described
        return Stamps(list(values), [None] * len(values)), described
    texts = [
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip() for value in values
    ]
    return parse_dates(texts, lambda i: f"{name}, row {i}, the date", options.date_format), described


def _bars(
    frame: pd.DataFrame, columns: Sequence[int], name: str, options: PriceOptions
) -> tuple[FloatArray, tuple[str, ...]]:
    """Return the prices, float64 [n, 4], and in words how they are written if they are text."""
    selected = [frame.iloc[:, column] for column in columns]
    texts: list[str] = []
    for series in selected:
        if pd.api.types.is_bool_dtype(series.dtype) or pd.api.types.is_datetime64_any_dtype(series.dtype):
            raise DataError(f"{name}, column {series.name!r}: the prices are of type {series.dtype}: pass numbers")
        if not pd.api.types.is_numeric_dtype(series.dtype):
            texts += [value for value in series.tolist() if isinstance(value, str)]
    try:
        form = number_form(texts, (), "", options.decimal)
    except UndecidedNumberError as error:
        raise DataError(f"{name}: {error}") from error
    bars = np.empty((len(frame), len(columns)))
    for position, series in enumerate(selected):
        if pd.api.types.is_numeric_dtype(series.dtype):
            bars[:, position] = series.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            bars[:, position] = [
                _to_number(value, form.decimal, f"{name}, row {i}, column {series.name!r}")
                for i, value in enumerate(series)
            ]
    return bars, form.described


def _to_number(value: Any, decimal: str, where: str) -> float:
    if isinstance(value, str):
        number = parse_number(value.strip(), decimal)
        if number is None:
            raise DataError(
                f"{where}: {value!r} is not a number: write plain numbers such as 1234.5, or remove the row"
            )
        return number
    try:
        return float("nan") if value is None or value is pd.NA else float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {value!r} is not a number: pass numbers") from error
