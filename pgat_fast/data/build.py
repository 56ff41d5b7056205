"""Builder of the data file: one row per trading day, targets from the prices and inputs from the ephemeris.

The text of the file depends only on its inputs and the installed versions: floats have `DIGITS` significant
digits, lines end in a line feed, and the clock, the locale and the number of threads have no effect.
"""

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.csv_file import FloatArray
from pgat_fast.data.ephemeris import sky_table
from pgat_fast.data.history_checks import checked_calendar
from pgat_fast.data.metadata import Note, note_path, write_note
from pgat_fast.data.price_format import PriceOptions
from pgat_fast.data.price_frames import prices_from_frame
from pgat_fast.data.prices import PRICES, Remarks, read_prices, sp500_prices
from pgat_fast.errors import DataError
from pgat_fast.utils.io import write_atomically

DIGITS = 10
"""Significant digits of a number in the file: 400 times finer than the float32 that the model reads."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildReport:
    """Summary of the file that `build_file` wrote."""

    path: Path
    rows: int
    first_date: date
    last_date: date
    base_price: float
    """The close before the first row, which the note stores for turning returns into prices."""
    columns: int
    """Number of columns after `date`."""
    sha256: str
    """Of the file's bytes, hexadecimal."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What the prices were taken for and what was mended, a line each."""


def build_table(
    prices: pd.DataFrame, targets: Literal["returns", "levels"] = "returns", rows: int | None = None
) -> pd.DataFrame:
    """Return the columns `COLUMNS`, float64, indexed by `date`: one row for each of the last `rows` days.

    `prices` is a result of `sp500_prices` or `read_prices`, or a frame that `prices_from_frame` accepts. `targets`:
    "returns" is log(price / previous close) for each of open, high, low and close, "levels" is log(price).
    `time_delta` is the number of calendar days since the previous row. The first day has no previous day and gives no
    row. `rows` None takes all other days.

    Limits of the S&P 500 of `sp500_prices`: until 1961 open, high, low and close are equal, and so are the four
    targets; from 1962 to 2005 the open equals the previous close on 84 % of the days (later on 12 %), so that
    `log_Open` is zero as a return.

    Raises `DataError` for prices that `prices_from_frame` rejects, days outside the ephemeris, unknown `targets`, and
    more `rows` than available or fewer than 1.
    """
    prices = prices_from_frame(prices, "prices")
    if targets not in ("returns", "levels"):
        raise DataError(f"targets is {targets!r}: choose 'returns' or 'levels'")
    available = len(prices) - 1
    if available < 1:
        raise DataError("fewer than two days of prices give no row: the first day has no previous close")
    if rows is None:
        rows = available
    if not 1 <= rows <= available:
        raise DataError(f"{rows} rows asked for, but {len(prices)} days of prices give 1 to {available} rows")
    # Cut first, so that the celestial columns are computed for the requested days only.
    prices = prices.iloc[-rows - 1 :]
    bars = prices[list(PRICES)].to_numpy(np.float64)
    ratios = bars[1:] / (bars[:-1, 3:] if targets == "returns" else 1.0)
    days = pd.DatetimeIndex(prices.index[1:], name="date")
    table = pd.DataFrame(np.log(ratios), index=days, columns=list(TARGETS))
    table["time_delta"] = np.diff(prices.index.to_numpy().astype("datetime64[D]")).astype(np.float64)
    return pd.concat([table, sky_table(days)], axis=1)[list(COLUMNS)]


def build_file(
    out: str | Path,
    prices: str | Path | pd.DataFrame = "sp500",
    targets: Literal["returns", "levels"] = "returns",
    rows: int | None = None,
    *,
    options: PriceOptions | None = None,
    trading_days: str = "auto",
    strict: bool = False,
) -> BuildReport:
    """Build the data file and write it to `out`, with a note beside it (`metadata.Note`); create a missing folder.

    `prices` is "sp500", the path of a file (see `read_prices`, also for `options`), or a frame (see
    `prices_from_frame`); `targets` and `rows` are those of `build_table`. `trading_days` is the calendar of the rows,
    as the setting `data.trading_days`; the note stores it unless it is `auto`. Probable faults of the source
    (`history_checks.examine`) are logged, and refused if `strict`. An existing `out` is replaced only by a complete
    file: it is written under another name in the same folder, flushed to the disk and renamed. The note is written
    after it in the same way; a note left from another file has another hash and is ignored.

    Raises `DataError` as `read_prices` and `build_table` do, for rows that contradict a daily calendar, and if `out`
    or the note cannot be written.
    """
    started = time.perf_counter()
    if not Path(out).name:
        raise DataError(f"{str(out)!r}: this names no file to write to")
    remarks = Remarks()
    is_file = not isinstance(prices, pd.DataFrame) and prices != "sp500"
    name = "the frame" if isinstance(prices, pd.DataFrame) else str(prices)
    if isinstance(prices, pd.DataFrame):
        source = prices_from_frame(prices, name, options, remarks)
    else:
        source = read_prices(prices, options, remarks) if is_file else sp500_prices()
    for path in (Path(out), note_path(Path(out))):
        if is_file and path.exists() and path.samefile(name):
            raise DataError(f"{path}: this is the file of prices: give the data file another name")
    used = source if rows is None or rows < 1 else source.iloc[-rows - 1 :]
    dates = pd.DatetimeIndex(used.index).to_numpy().astype("datetime64[D]")
    if strict and remarks.warnings:
        raise DataError(f"{remarks.warnings[0]} (refused because of --strict)")
    if len(dates):
        checked_calendar(name, dates, np.log(used.to_numpy(np.float64)), trading_days, strict)
    try:
        table = build_table(source, targets, rows)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    content = _to_csv(table).encode("ascii")
    try:
        write_atomically(Path(out), content)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error
    days = pd.DatetimeIndex(table.index)
    report = BuildReport(
        path=Path(out),
        rows=len(table),
        first_date=days[0].date(),
        last_date=days[-1].date(),
        base_price=float(source["close"].iloc[-len(table) - 1]),
        columns=table.shape[1],
        sha256=hashlib.sha256(content).hexdigest(),
        seconds=time.perf_counter() - started,
        notes=tuple(remarks.notes),
    )
    note = Note(
        format="pgat-fast data note",
        version=1,
        sha256=report.sha256,
        source=Path(name).name,
        targets=targets,
        base_price=report.base_price,
        first_date=report.first_date,
        last_date=report.last_date,
        rows=report.rows,
        trading_days=None if trading_days == "auto" else trading_days,
    )
    try:
        write_note(report.path, note)
    except OSError as error:
        raise DataError(
            f"{note_path(report.path)}: cannot be written: {error.strerror or error}; {out} itself is complete: "
            f"with it set data.base_price to {report.base_price!r}"
        ) from error
    _log.info("wrote %s: %d rows, %s to %s", report.path, report.rows, report.first_date, report.last_date)
    return report


def as_written(values: FloatArray) -> FloatArray:
    """Round `values`, of any shape, to the `DIGITS` significant digits that the file holds."""
    # Adding zero turns -0.0 into 0.
    text = (f"{value:.{DIGITS}g}" for value in (values + 0.0).ravel().tolist())
    return np.array([float(number) for number in text], dtype=np.float64).reshape(values.shape)


def _to_csv(table: pd.DataFrame) -> str:
    """Return the table as CSV text. Formatted here because pandas takes four times as long."""
    row = ",".join(["%s", *[f"%.{DIGITS}g"] * table.shape[1]])
    days = pd.DatetimeIndex(table.index).strftime("%Y-%m-%d")
    # Adding zero turns -0.0 into 0.
    values = (table.to_numpy(np.float64) + 0.0).tolist()
    lines = [row % (day, *numbers) for day, numbers in zip(days, values, strict=True)]
    return "\n".join([",".join(["date", *table.columns]), *lines]) + "\n"
