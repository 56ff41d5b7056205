"""Loading of the data file into the splits that a configuration describes."""

from dataclasses import replace

import numpy as np
import torch

from pgat_fast.config.schema import DataConfig, ModelConfig
from pgat_fast.data.checks import Dates
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.csv_file import FloatArray
from pgat_fast.data.history_checks import Findings, checked_calendar, examine
from pgat_fast.data.metadata import Note, read_note, resolve_base_price
from pgat_fast.data.price_units import log_prices
from pgat_fast.data.table import Table, read_table
from pgat_fast.data.windows import Splits, prepare
from pgat_fast.errors import ConfigError


def load_splits(data: DataConfig, model: ModelConfig, device: torch.device) -> tuple[Table, Splits]:
    """Read the data file and put its three splits on `device`.

    The table holds the hash of the file and the base price (see `resolve_base_price`).

    Raises DataError for faults of the file, ConfigError for settings that do not fit it.
    """
    table = read_table(data.path, columns_in_use(data, model))
    note = read_note(table)
    table, splits = split_table(table, note, data, model, device)
    dates, logs = _used_rows(table, data, data.target_kind)
    checked_calendar(table.source, dates, logs, resolve_calendar(data.trading_days, note))
    return table, splits


def split_table(
    table: Table, note: Note | None, data: DataConfig, model: ModelConfig, device: torch.device
) -> tuple[Table, Splits]:
    """Return the table with the base price, and its splits, as `load_splits` does, for a data file that was read."""
    table = _without_last(table, data.skip_last)
    splits = prepare(
        table,
        inputs=input_columns(data, model),
        targets=data.targets or (columns_in_use(data, model) or table.columns)[: model.c_out],
        seq_len=model.seq_len,
        label_len=model.label_len,
        pred_len=model.pred_len,
        validation_length=data.validation_length,
        test_length=data.test_length,
        used_rows=data.rows,
        freq=model.freq,
        decoder_future=data.decoder_future,
        enc_in=model.enc_in,
        dec_in=model.dec_in,
        device=device,
    )
    _check_target_kind(table, splits, data.target_kind, note)
    return replace(table, base_price=resolve_base_price(data.base_price, note, data.target_kind)), splits


def resolve_calendar(setting: str, note: Note | None) -> str:
    """Return the calendar of a data file: `setting`, or that of its note if it is `auto`."""
    return note.trading_days if setting == "auto" and note is not None and note.trading_days else setting


def log_bars(table: Table, kind: str) -> FloatArray | None:
    """Return the log prices [n, 4] of `table` up to a common constant; None if it lacks one of the standard targets."""
    if not set(TARGETS) <= set(table.columns):
        return None
    return log_prices(table.select(TARGETS), kind)


def examine_table(table: Table, note: Note | None, data: DataConfig) -> Findings:
    """Compare a data file with the calendar of `data`, or of its note, and look for probable faults of its prices.

    The kind of the targets is that of the note, or what the numbers look like, if it contradicts `data`.
    """
    kind = data.target_kind
    if set(TARGETS) <= set(table.columns) and fault_of_kind(table.select(TARGETS), kind, note):
        kind = "levels" if kind == "returns" else "returns"
    return examine(*_used_rows(table, data, kind), resolve_calendar(data.trading_days, note))


def _used_rows(table: Table, data: DataConfig, kind: str) -> tuple[Dates, FloatArray | None]:
    """Return the dates and the log prices of the rows in use, `data.rows` at the end of the file."""
    logs = log_bars(table, kind)
    first = 0 if data.rows is None else -data.rows
    return table.dates[first:], None if logs is None else logs[first:]


def _without_last(table: Table, rows: int) -> Table:
    """Return `table` without its last `rows` rows, for `data.skip_last`."""
    if rows >= len(table.dates):
        raise ConfigError(f"data.skip_last is {rows}, but {table.source} has {len(table.dates)} rows: lower it")
    if not rows:
        return table
    return replace(table, dates=table.dates[:-rows], values=table.values[:-rows])


def columns_in_use(data: DataConfig, model: ModelConfig) -> list[str] | None:
    """Return the columns to read: inputs and targets; None is all numeric ones."""
    inputs = input_columns(data, model)
    return None if inputs is None else list(dict.fromkeys([*inputs, *(data.targets or ())]))


def input_columns(data: DataConfig, model: ModelConfig) -> list[str] | None:
    """Return the columns to read, in the order of the model's inputs; None is all numeric ones, in the file's order.

    The celestial graph identifies columns by position: they are `COLUMNS`, in whatever order the file has them. Only
    with `feature_map: positional` and another number of inputs is their order that of the file.
    """
    if not model.use_celestial_graph or model.enc_in != len(COLUMNS):
        return data.inputs
    if data.inputs is not None and tuple(data.inputs) != COLUMNS:
        raise ConfigError(
            "data.inputs: with the celestial graph the inputs are the columns of the data file in their order: leave "
            "data.inputs out, or set model.use_celestial_graph to false"
        )
    return list(COLUMNS)


def fault_of_kind(values: FloatArray, kind: str, note: Note | None) -> str | None:
    """Return the reason why the unscaled standard targets `values` [n, 4] are not of `kind`; None if they may be.

    A note of `data build` decides. Without one: logarithms of prices change little from day to day, and most are far
    from 0. Returns are small, and the standard deviation of their daily changes exceeds their own.
    """
    if note is not None:
        return (
            None if note.targets == kind else f"the targets are {note.targets}, as `data build` noted beside the file"
        )
    deviation = values.std(axis=0)
    deviation[deviation == 0] = 1.0
    size = float(np.median(np.abs(values.mean(axis=0))))
    roughness = float(np.median(np.diff(values, axis=0).std(axis=0) / deviation)) if len(values) > 1 else 1.0
    if kind == "returns" and (size > 0.5 or roughness < 0.6):
        return (
            f"the targets do not look like daily log returns (they average {size:.3g}, and change from day to day by "
            f"{roughness:.2g} of what they vary)"
        )
    if kind == "levels" and size < 0.5 and roughness > 1.2:
        return "the targets jump from day to day as returns do, not as logarithms of prices"
    return None


def _check_target_kind(table: Table, splits: Splits, kind: str, note: Note | None) -> None:
    prices = [name for name in splits.target_scaler.columns if name in TARGETS]
    if not prices:
        return
    first = splits.train.first_row
    training: FloatArray = table.select(prices)[first : first + len(splits.train.values)]
    fault = fault_of_kind(training, kind, note)
    if fault:
        other_kind = "levels" if kind == "returns" else "returns"
        raise ConfigError(f"{table.source}: {fault}: set data.target_kind to {other_kind}")
