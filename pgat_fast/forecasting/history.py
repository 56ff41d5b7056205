"""The history before a forecast: the last rows of a data file, or of a file of prices."""

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd

from pgat_fast.config import DataConfig
from pgat_fast.data.build import as_written, build_table
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.load import fault_of_kind
from pgat_fast.data.metadata import read_note
from pgat_fast.data.prices import PRICES, check_prices, read_prices
from pgat_fast.data.table import Table, read_table
from pgat_fast.data.trading_days import Days
from pgat_fast.errors import DataError

Source: TypeAlias = str | Path | Table | pd.DataFrame
"""A CSV file (a data file or prices), the table of a data file, or a frame of prices as returned by `read_prices`."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class History:
    """The known days before a forecast."""

    table: Table
    """The columns that the model needs; the last row is the last known day."""
    dates: Days
    """[n], the dates of all rows of the source, from which its calendar is recognised."""
    last_close: float | None
    """Close of the last day, in the unit of the prices; None if the targets are not prices."""
    last_close_from: str
    """Description of where `last_close` comes from."""
    relative: bool = False
    """Whether no price is known; `last_close` is then in units of the close before the first row."""


def read_history(
    source: Source,
    *,
    inputs: tuple[str, ...],
    targets: tuple[str, ...],
    seq_len: int,
    data: DataConfig,
    trained_on: str,
    last_close: float | None = None,
) -> History:
    """Read the history from which `targets` are forecast: the last `seq_len` days of `inputs`.

    A file with all columns that the run reads is a data file. A file without them, but with the columns of
    `read_prices`, is a file of prices, from which the table is built in memory. `trained_on` is the hash of the data
    file of the training: `data.base_price` applies to that file only. `last_close` takes precedence over the source.

    Raises:
        DataError: the source cannot be read, has too few rows, or has a target kind other than that of the training.
    """
    if last_close is not None and not (np.isfinite(last_close) and last_close > 0):
        raise DataError(f"the last close is {last_close:g}: give a positive price")
    columns = tuple(dict.fromkeys([*inputs, *targets]))
    close: float | None
    if isinstance(source, pd.DataFrame) or (isinstance(source, str | Path) and _holds_prices(Path(source), columns)):
        table, dates, close, known_from = _from_prices(source, columns, seq_len, data.target_kind)
    else:
        table = source if isinstance(source, Table) else read_table(source, columns)
        dates = table.dates
        _check_rows(table, seq_len)
        close, known_from = _last_close(table, targets, data, trained_on)
    if targets != TARGETS or data.target_kind == "levels":
        if last_close is not None:
            _log.warning("the last close is ignored: the targets are %s", "levels" if close else "not prices")
        return History(table, dates, close if targets == TARGETS else None, known_from)
    if last_close is not None:
        return History(table, dates, last_close, "as given")
    if close is not None:
        return History(table, dates, close, known_from)
    _log.warning(
        "%s: the close before the first row is unknown, so forecasts are relative to it: give the last close",
        table.source,
    )
    close = float(np.exp(table.select(["log_Close"]).sum()))
    return History(table, dates, close, "unknown: the close before the first row is 1", relative=True)


def _holds_prices(path: Path, columns: tuple[str, ...]) -> bool:
    """Return whether the header has at least some price columns and not all of `columns`.

    Errors are left to the readers to report.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            # The readers skip empty lines before the header, too.
            line = next((line for line in iter(lambda: file.readline(1_000_000), "") if line.strip()), "")
            header = next(csv.reader([line]), [])
    except (OSError, csv.Error):
        return False
    names = {name.strip().casefold() for name in header}
    return not set(columns) <= set(header) and len(names & {"date", *PRICES}) >= 3


def _from_prices(
    source: str | Path | pd.DataFrame, columns: tuple[str, ...], seq_len: int, kind: Literal["returns", "levels"]
) -> tuple[Table, Days, float, str]:
    """Return the table of the last `seq_len` days, the dates of all days, the last close and its origin."""
    if isinstance(source, pd.DataFrame):
        prices, name = source, "the prices"
        check_prices(prices, name)
    else:
        prices, name = read_prices(source), str(source)
    foreign = [column for column in columns if column not in COLUMNS]
    if foreign:
        raise DataError(f"{name}: column {foreign[0]} cannot be built from prices: pass a data file that holds it")
    if len(prices) < seq_len + 1:
        raise DataError(
            f"{name}: {len(prices)} days of prices are too few: the model reads the last {seq_len} (model.seq_len) and "
            f"the close before them: pass at least {seq_len + 1}"
        )
    frame = build_table(prices, kind, rows=seq_len)
    dates = pd.DatetimeIndex(prices.index).to_numpy().astype("datetime64[D]")
    # Round as in a data file, so that prices and the file built from them give the same forecast.
    table = Table(dates[-seq_len:], as_written(frame.to_numpy(np.float64)), COLUMNS, source=name)
    return table, dates, float(prices["close"].iloc[-1]), f"the last close of {name}"


def _check_rows(table: Table, seq_len: int) -> None:
    if len(table.dates) < seq_len:
        raise DataError(
            f"{table.source}: {len(table.dates)} rows are too few: the model reads the last {seq_len} (model.seq_len): "
            f"pass at least {seq_len}"
        )


def _last_close(table: Table, targets: tuple[str, ...], data: DataConfig, trained_on: str) -> tuple[float | None, str]:
    """Return the close of the last row and its origin; the close is None if it is unknown or not needed."""
    note = read_note(table)
    price_targets = [name for name in targets if name in TARGETS]
    fault = fault_of_kind(table.select(price_targets), data.target_kind, note) if price_targets else None
    if fault:
        raise DataError(f"{table.source}: {fault}, but the run was trained on {data.target_kind}")
    if targets != TARGETS:
        return None, "not needed"
    values = table.select(TARGETS)
    closes = values[:, TARGETS.index("log_Close")]
    if data.target_kind == "levels":
        return float(np.exp(closes[-1])), f"the last row of {table.source}"
    base = note.base_price if note is not None else None
    if data.base_price is not None and table.sha256 == trained_on:
        base = data.base_price
    if table.base_price != 1.0:  # set by `load_splits`, or by the caller
        base = table.base_price
    if base is None:
        return None, ""
    return float(base * np.exp(closes.sum())), f"the returns of {table.source} from the close {base:g} before its rows"
