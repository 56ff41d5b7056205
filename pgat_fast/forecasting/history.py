"""The history before a forecast: the last rows of a data file, or of a file of prices."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from pgat_fast.config import DataConfig
from pgat_fast.data.build import as_written, build_table
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.csv_file import FloatArray, UnreadableFileError
from pgat_fast.data.file_text import text_of
from pgat_fast.data.load import fault_of_kind, log_bars, resolve_calendar
from pgat_fast.data.metadata import read_note
from pgat_fast.data.price_format import PriceOptions, first_fields, has_prices
from pgat_fast.data.price_frames import prices_from_frame
from pgat_fast.data.prices import Remarks, read_prices
from pgat_fast.data.table import Table, read_table
from pgat_fast.data.trading_days import Days
from pgat_fast.errors import DataError
from pgat_fast.utils.io import read_regular_file

Source: TypeAlias = str | Path | Table | pd.DataFrame
"""A file (a data file or prices), the table of a data file, or a frame of prices (see `prices_from_frame`)."""

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
    source: str
    """Name of the source, for messages."""
    logs: FloatArray | None
    """[n, 4], log prices of open, high, low, close up to a common constant; None if the source has no prices."""
    trading_days: str = "auto"
    """Calendar in the note of a data file."""
    notes: tuple[str, ...] = ()
    """What the prices were taken for and what was mended, a line each."""
    warnings: tuple[str, ...] = ()
    """What is probably a fault of the file, a line each."""
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
    options: PriceOptions | None = None,
) -> History:
    """Read the history from which `targets` are forecast: the last `seq_len` days of `inputs`.

    A file with all columns that the run reads is a data file. A file without them, but with the columns of
    `read_prices`, is a file of prices, from which the table is built in memory. `trained_on` is the hash of the data
    file of the training: `data.base_price` applies to that file only. `last_close` takes precedence over the source.
    `options` is what the user states about a file of prices.

    Raises:
        DataError: the source cannot be read, has too few rows, or has a target kind other than that of the training.
    """
    if last_close is not None and not (np.isfinite(last_close) and last_close > 0):
        raise DataError(f"the last close is {last_close:g}: give a positive price")
    columns = tuple(dict.fromkeys([*inputs, *targets]))
    close: float | None
    remarks = Remarks()
    options = options or PriceOptions()
    if not isinstance(source, Table) and (
        isinstance(source, pd.DataFrame) or _holds_prices(Path(source), columns, options)
    ):
        prices = _read(source, options, remarks)
        table, close, known_from = _from_prices(prices, _name(source), columns, seq_len, data.target_kind)
        dates = pd.DatetimeIndex(prices.index).to_numpy().astype("datetime64[D]")
        logs: FloatArray | None = np.log(prices.to_numpy(np.float64))
        calendar = "auto"
    else:
        table = source if isinstance(source, Table) else read_table(source, columns)
        dates = table.dates
        _check_rows(table, seq_len)
        close, known_from = _last_close(table, targets, data, trained_on)
        logs = log_bars(table, data.target_kind)
        calendar = resolve_calendar("auto", read_note(table))
    known: dict[str, Any] = {
        "source": table.source,
        "logs": logs,
        "trading_days": calendar,
        "notes": tuple(remarks.notes),
        "warnings": tuple(remarks.warnings),
    }
    if targets != TARGETS or data.target_kind == "levels":
        if last_close is not None:
            _log.warning("the last close is ignored: the targets are %s", "levels" if close else "not prices")
        return History(table, dates, close if targets == TARGETS else None, known_from, **known)
    if last_close is not None:
        return History(table, dates, last_close, "as given", **known)
    if close is not None:
        return History(table, dates, close, known_from, **known)
    _log.warning(
        "%s: the close before the first row is unknown, so forecasts are relative to it: give the last close",
        table.source,
    )
    close = float(np.exp(table.select(["log_Close"]).sum()))
    return History(table, dates, close, "unknown: the close before the first row is 1", relative=True, **known)


def _holds_prices(path: Path, columns: tuple[str, ...], options: PriceOptions) -> bool:
    """Return whether a file has at least some price columns and is no data file with all of `columns`.

    Errors are left to the readers to report.
    """
    try:
        text = text_of(read_regular_file(path, "")).text
        return not set(columns) <= set(first_fields(text)) and has_prices(text, options)
    except (OSError, UnreadableFileError, DataError):
        return bool(path.suffix) and path.suffix.lower() in (".gz", ".zip", ".bz2", ".xz")


def _name(source: str | Path | pd.DataFrame) -> str:
    return "the prices" if isinstance(source, pd.DataFrame) else str(source)


def _read(source: str | Path | pd.DataFrame, options: PriceOptions, remarks: Remarks) -> pd.DataFrame:
    """Return the prices of a file or a frame."""
    if isinstance(source, pd.DataFrame):
        return prices_from_frame(source, _name(source), options, remarks)
    return read_prices(source, options, remarks)


def _from_prices(
    prices: pd.DataFrame, name: str, columns: tuple[str, ...], seq_len: int, kind: Literal["returns", "levels"]
) -> tuple[Table, float, str]:
    """Return the table of the last `seq_len` days, the last close and its origin."""
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
    return table, float(prices["close"].iloc[-1]), f"the last close of {name}"


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
