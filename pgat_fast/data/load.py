"""From the data file to the splits that a configuration asks for."""

import numpy as np
import torch

from pgat_fast.config.schema import DataConfig, ModelConfig
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.csv_file import FloatArray
from pgat_fast.data.table import Table, read_table
from pgat_fast.data.windows import Splits, prepare
from pgat_fast.errors import ConfigError


def load_splits(data: DataConfig, model: ModelConfig, device: torch.device) -> tuple[Table, Splits]:
    """Read the data file and put its three splits on `device`.

    Raises DataError for faults of the file, ConfigError for settings that do not fit it.
    """
    inputs = input_columns(data, model)
    columns = None if inputs is None else list(dict.fromkeys([*inputs, *(data.targets or ())]))
    table = read_table(data.path, columns)
    splits = prepare(
        table,
        inputs=inputs,
        targets=data.targets or table.columns[: model.c_out],
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
    check_target_kind(table, splits, data.target_kind)
    return table, splits


def input_columns(data: DataConfig, model: ModelConfig) -> list[str] | None:
    """The columns to read, in the order of the model's inputs; None is all numeric ones, in the file's order.

    The celestial graph knows columns by their place: they are `COLUMNS`, wherever they stand in the file (but where
    `feature_map: positional` is used with another number of inputs, whose order only the file can tell).
    """
    if not model.use_celestial_graph or model.enc_in != len(COLUMNS):
        return data.inputs
    if data.inputs is not None and tuple(data.inputs) != COLUMNS:
        raise ConfigError(
            "data.inputs: with the celestial graph the inputs are the columns of the data file in their order: leave "
            "data.inputs out, or set model.use_celestial_graph to false"
        )
    return list(COLUMNS)


def check_target_kind(table: Table, splits: Splits, kind: str) -> None:
    """Refuse targets that are plainly not of `kind`.

    Logarithms of prices change little from day to day, and most are far from 0. Returns are small, and change from
    day to day by more than they vary.
    """
    if splits.target_scaler.columns != TARGETS:
        return
    first = splits.train.first_row
    values: FloatArray = table.values[first : first + len(splits.train.values)]
    values = values[:, [table.columns.index(name) for name in TARGETS]]
    size = float(np.median(np.abs(splits.target_scaler.mean)))
    roughness = float(np.median(np.diff(values, axis=0).std(axis=0) / splits.target_scaler.std))
    if kind == "returns" and (size > 0.5 or roughness < 0.6):
        raise ConfigError(
            f"{table.source}: the targets do not look like daily log returns (they average {size:.3g}, and change from "
            f"day to day by {roughness:.2g} of what they vary): set data.target_kind to levels"
        )
    if kind == "levels" and size < 0.5 and roughness > 1.2:
        raise ConfigError(
            f"{table.source}: the targets jump from day to day as returns do, not as logarithms of prices: "
            "set data.target_kind to returns"
        )
