"""Forecasts of the days after the last row of a file."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from pgat_fast.data.build import as_written
from pgat_fast.data.columns import TARGETS
from pgat_fast.data.csv_file import FloatArray
from pgat_fast.data.ephemeris import CELESTIAL, sky_table
from pgat_fast.data.history_checks import checked_calendar
from pgat_fast.data.price_format import PriceOptions
from pgat_fast.data.price_units import to_prices
from pgat_fast.data.prices import PRICES
from pgat_fast.data.table import Table
from pgat_fast.data.trading_days import FEWEST_ROWS, FEWEST_ROWS_OF_WEEKDAYS, Days, future_trading_days
from pgat_fast.data.windows import known_ahead, window_ahead
from pgat_fast.errors import CheckpointError, DataError
from pgat_fast.evaluation.intervals import LEVELS, Bounds, Intervals, price_bounds, scaled_bounds
from pgat_fast.evaluation.split_forecasts import MixtureArrays, mixture_arrays
from pgat_fast.forecasting.history import History, Source, read_history
from pgat_fast.forecasting.load_run import Run
from pgat_fast.model.forecast import Forecast, Mixture, point_forecast
from pgat_fast.model.precision import products_in

_log = logging.getLogger(__name__)


def predict(
    run: Run,
    source: Source,
    *,
    last_close: float | None = None,
    trading_days: str | None = None,
    levels: Sequence[float] = LEVELS,
    options: PriceOptions | None = None,
    strict: bool = False,
) -> pd.DataFrame:
    """Forecast the `pred_len` trading days after the last row of `source`.

    Args:
        run: a run from `load_run`.
        source: a file, either a data file or prices (see `read_prices`); the table of a data file; or a frame of prices
            (see `prices_from_frame`), which is not changed.
        last_close: close of the last known day, for a data file of returns from which it cannot be derived.
        trading_days: `nyse`, `weekdays`, `daily`, `weekly`, `monthly`, weekdays such as `Sun,Mon,Tue,Wed,Thu`, or
            `auto`; `data.trading_days` of the run by default.
        levels: nominal coverage of each interval, as a fraction.
        options: what the format of a file of prices is, where it does not show.
        strict: refuse a source with probable faults (`history_checks.examine`), which otherwise are logged.

    Returns:
        One row per day: `date`, `horizon` (from 1), and for the four standard targets the prices `open`, `high`, `low`,
        `close`, otherwise the targets in their own units. If the run has intervals, columns such as `close_lower_80`
        and `close_upper_80` follow for each of them, NaN where there were too few windows to calibrate the level.
        `attrs` holds the assumptions (calendar, last close and its origin, checkpoint, method of the intervals, what
        the prices were taken for) and the days whose forecast is not a possible bar.

    Raises:
        DataError: the source cannot be read, has too few rows or contradicts the calendar, or the intervals do not have
            one of `levels`.
        ConfigError: the calendar is unknown.
        CheckpointError: the forecasts are not finite.
    """
    targets = run.target_scaler.columns
    ahead = forecast_ahead(
        run, source, last_close=last_close, trading_days=trading_days, options=options, strict=strict
    )
    history, days, calendar, output, values = ahead
    in_prices = targets == TARGETS
    scaled = point_forecast(output).double().cpu().numpy()
    names = PRICES if in_prices else targets
    columns = {"date": days.astype("datetime64[s]"), "horizon": np.arange(1, len(days) + 1)}
    columns |= {name: values[0, :, index] for index, name in enumerate(names)}
    intervals = _intervals_of(run, output, levels)
    if intervals is not None:
        lower, upper = _bounds(run, intervals, scaled, values, mixture_arrays([output]), history.last_close)
        for index, name in enumerate(names):
            for level, low, high in zip(intervals.levels, lower, upper, strict=True):
                columns[f"{name}_lower_{100 * level:g}"] = low[0, :, index]
                columns[f"{name}_upper_{100 * level:g}"] = high[0, :, index]
    frame = pd.DataFrame(columns)
    frame.attrs = {
        "run": str(run.folder),
        "checkpoint": run.checkpoint.name,
        "last_date": str(history.dates[-1]),
        "calendar": calendar,
        "last_close": history.last_close,
        "last_close_from": history.last_close_from,
        "relative": history.relative,
        "notes": list(history.notes),
        "intervals": None
        if intervals is None
        else {
            "method": intervals.method,
            "levels": list(intervals.levels),
            "calibration_windows": intervals.windows,
            "missing": [
                level for level, width in zip(intervals.levels, intervals.scaled, strict=False) if width is None
            ],
        },
        "impossible_bars": _impossible_bars(frame) if in_prices else [],
    }
    _log.info("%s", frame.attrs)
    return frame


class Ahead(NamedTuple):
    """A forecast of the days after a history, a batch of one."""

    history: History
    days: Days
    """[P], the days to forecast."""
    calendar: str
    """Name of their calendar."""
    output: Forecast
    """Forecast of the model, scaled."""
    values: FloatArray
    """[1, P, c_out], its point forecast: prices for the four standard targets, otherwise unscaled targets."""


def forecast_ahead(
    run: Run,
    source: Source,
    *,
    last_close: float | None = None,
    trading_days: str | None = None,
    options: PriceOptions | None = None,
    strict: bool = False,
) -> Ahead:
    """Forecast the `pred_len` trading days after the last row of `source`.

    Arguments and errors are those of `predict`.
    """
    data, model = run.config.data, run.config.model
    targets = run.target_scaler.columns
    history = read_history(
        source,
        inputs=run.input_scaler.columns,
        targets=targets,
        seq_len=model.seq_len,
        data=data,
        trained_on=str(run.about.get("data", {}).get("sha256", "")),
        last_close=last_close,
        options=options,
    )
    calendar = _calendar(run, history, trading_days, strict)
    days = future_trading_days(history.dates, model.pred_len, calendar)
    output = _forecast(run, history, days)
    values = run.target_scaler.inverse(point_forecast(output).double().cpu().numpy())
    if targets == TARGETS:
        with np.errstate(over="ignore"):
            values = to_prices(values, data.target_kind, np.array([history.last_close]))
    if not np.isfinite(values).all():
        raise CheckpointError(f"{run.checkpoint}: the forecasts are not finite: use another checkpoint")
    return Ahead(history, days, calendar, output, values)


def known_columns(run: Run) -> tuple[str, ...]:
    """Return the input columns whose future values the decoder of the run receives."""
    inputs, targets = run.input_scaler.columns, run.target_scaler.columns
    if run.config.data.decoder_future != "known":
        return ()
    return tuple(name for name, known in zip(inputs, known_ahead(inputs, targets).tolist(), strict=True) if known)


def _calendar(run: Run, history: History, chosen: str | None, strict: bool) -> str:
    """Return the calendar of the days to forecast. Raises DataError if the rows contradict it.

    It is the `chosen` one, or `data.trading_days` of the run, or that of the rows. `auto`, unless it was `chosen`,
    means weeks or months if the run was trained on them.
    """
    setting = chosen or run.config.data.trading_days
    if strict and history.warnings:
        raise DataError(f"{history.warnings[0]} (refused because of --strict)")
    trained_on = run.about.get("data", {}).get("calendar", "auto")
    wanted = history.trading_days if setting == "auto" else setting
    if wanted == "auto" and chosen is None and trained_on in ("weekly", "monthly"):
        wanted = trained_on
    # The model reads the last rows, and the calendar is judged by the last two years.
    count = max(run.config.model.seq_len + 1, 2 * 366)
    logs = None if history.logs is None else history.logs[-count:]
    calendar = checked_calendar(history.source, history.dates[-count:], logs, wanted, strict)
    spacings = [name if name in ("weekly", "monthly") else "daily" for name in (calendar, trained_on)]
    if trained_on != "auto" and spacings[0] != spacings[1]:
        _log.warning("%s: the rows are %s, but the run was trained on %s ones", history.source, *spacings)
    few = len(history.dates) < (FEWEST_ROWS if calendar == "weekdays" else FEWEST_ROWS_OF_WEEKDAYS)
    if wanted == "auto" and few and trained_on != "auto":  # too few rows to recognise a calendar
        return str(trained_on)
    return calendar


@torch.no_grad()
def _forecast(run: Run, history: History, days: Days) -> Forecast:
    """Return the scaled forecast of `days`, a batch of one."""
    data, model = run.config.data, run.config.model
    batch = window_ahead(
        history.table,
        known_future(days, history.dates[-1], known_columns(run)),
        scaler=run.input_scaler,
        targets=run.target_scaler.columns,
        seq_len=model.seq_len,
        label_len=model.label_len,
        freq=model.freq,
        decoder_future=data.decoder_future,
        device=run.device,
    )
    run.model.eval()
    with products_in("highest", run.device):
        forecast: Forecast = run.model(*batch[:4])[0]
    return forecast


def _intervals_of(run: Run, output: Forecast, levels: Sequence[float]) -> Intervals | None:
    """Return the intervals of the run for `levels`; log a warning and return None if it has none."""
    intervals = run.intervals
    if intervals is None and isinstance(output, Mixture):
        # A mixture has its own quantiles and needs no calibration.
        mode = run.config.model.mdn_multivariate_mode
        intervals = Intervals("mixture", tuple(levels), 0, mixture_mode=mode, seed=run.config.training.seed)
    if intervals is None:
        _log.warning(
            "no intervals: none are calibrated for checkpoint %s; run `pgat-fast evaluate %s` to calibrate them",
            run.checkpoint.name, run.folder,
        )  # fmt: skip
        return None
    return intervals.select(levels)


def _bounds(
    run: Run,
    intervals: Intervals,
    scaled: FloatArray,
    values: FloatArray,
    mixture: MixtureArrays | None,
    last_close: float | None,
) -> Bounds:
    """Return the lower and upper bounds [levels, 1, P, C] of the forecasts `values` [1, P, C]; NaN where infinite."""
    scaler = run.target_scaler
    if scaler.columns != TARGETS:
        lower, upper = scaled_bounds(intervals, scaled, mixture)
        return scaler.inverse(lower), scaler.inverse(upper)
    close = np.array([1.0 if last_close is None else last_close])
    kind = run.config.data.target_kind
    return price_bounds(intervals, values, mixture, scaler=scaler, kind=kind, last_close=close)


def known_future(days: Days, last: np.datetime64, columns: Sequence[str]) -> Table:
    """Compute the known `columns` (sky positions, `time_delta`) of the future `days` after the day `last`.

    The values are those that a data file of these days would hold.

    Raises:
        DataError: the sky cannot be computed, because skyfield is not installed or a day is outside the ephemeris.
    """
    values: dict[str, FloatArray] = {"time_delta": np.diff(days, prepend=last).astype(np.float64)}
    if not set(columns).isdisjoint(CELESTIAL):
        sky = sky_table(pd.DatetimeIndex(days.astype("datetime64[s]")))
        values |= {name: as_written(sky[name].to_numpy(np.float64)) for name in columns if name in CELESTIAL}
    table = np.stack([values[name] for name in columns], axis=1) if columns else np.empty((len(days), 0))
    return Table(days, table, tuple(columns), source="the forecast days")


def _impossible_bars(frame: pd.DataFrame) -> list[str]:
    """Return the days whose forecast high is below, or whose low is above, the open or close, and log a warning.

    The forecasts are not corrected.
    """
    low_too_high = frame["low"] > frame[["open", "close"]].min(axis=1)
    high_too_low = frame["high"] < frame[["open", "close"]].max(axis=1)
    days = [str(day.date()) for day in frame.loc[low_too_high | high_too_low, "date"]]
    if days:
        _log.warning(
            "%d of %d forecast days have a high below, or a low above, the open or close, because the four prices are "
            "forecast separately: %s",
            len(days), len(frame), ", ".join(days),
        )  # fmt: skip
    return days
