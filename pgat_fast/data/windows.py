"""Batches of windows, cut on the training device from a table that is stored there as a whole.

The production table takes 3.3 MB, its windows, written out, 1.2 GB. So only the table is stored: in a strided
view every window is one block of memory, and a batch is one gather of such blocks.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pgat_fast.data.batch import Batch as Batch
from pgat_fast.data.batch import example as example
from pgat_fast.data.calendar import calendar_marks
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.scaling import Scaler
from pgat_fast.data.splits import SplitRows, count_windows, split_rows
from pgat_fast.data.table import Table
from pgat_fast.errors import ConfigError, DataError

KNOWN_AHEAD = frozenset(COLUMNS) - frozenset(TARGETS)
"""The only columns whose future values are known when a forecast is made: the celestial ones and `time_delta`."""


class Windows:
    """The windows of a split: window i has inputs from rows [i, i + S) and targets from [i + S, i + S + P)."""

    def __init__(
        self,
        values: Tensor,
        marks: Tensor,
        targets: Tensor,
        *,
        seq_len: int,
        label_len: int,
        pred_len: int,
        known_ahead: Tensor | None = None,
        first_row: int = 0,
    ) -> None:
        """Store the rows of one split: scaled `values` [n, F], `marks` [n, M], scaled `targets` [n, c_out].

        `known_ahead` (bool, [F]) marks the columns that the decoder receives for the days to forecast; None is
        none. The others are 0 there. `first_row` is the row of the whole table where the split begins.

        Raises ValueError for lengths that do not fit each other or the number of rows.
        """
        rows = len(values)
        self.count = count_windows(rows, seq_len, pred_len)
        if not 0 <= label_len <= seq_len or pred_len < 1 or self.count < 1:
            raise ValueError(
                f"no windows of seq_len {seq_len}, label_len {label_len}, pred_len {pred_len} in {rows} "
                "rows: they must be at least seq_len + pred_len, and label_len at most seq_len"
            )
        if len(marks) != rows or len(targets) != rows:
            raise ValueError(f"{rows} rows of values, {len(marks)} of marks and {len(targets)} of targets")
        self.seq_len, self.label_len, self.pred_len = seq_len, label_len, pred_len
        self.first_row = first_row
        self.values, self.marks, self.targets = values.contiguous(), marks.contiguous(), targets.contiguous()
        self.unknown_ahead = None if known_ahead is None else ~known_ahead.to(values.device)
        start, steps = seq_len - label_len, label_len + pred_len
        self._x_enc = _blocks(self.values, 0, seq_len, self.count)
        self._x_mark_enc = _blocks(self.marks, 0, seq_len, self.count)
        self._x_dec = _blocks(self.values, start, steps, self.count)
        self._x_mark_dec = _blocks(self.marks, start, steps, self.count)
        self._y = _blocks(self.targets, seq_len, pred_len, self.count)

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Tensor) -> Batch:
        """Gather the windows `indices` (int64, [B], on any device) into tensors that later calls do not overwrite.

        Raises IndexError for a window that does not exist if `indices` are on the CPU. On another device this
        check would synchronize with it, so the device itself reports the fault.
        """
        # index_select rejects such indices too, but its message does not give the number of windows.
        if indices.device.type == "cpu" and len(indices):
            first, last = (int(bound) for bound in indices.aminmax())
            if first < 0 or last >= self.count:
                raise IndexError(f"window {first if first < 0 else last} does not exist: there are {self.count}")
        # A copy to the GPU may be asynchronous; a copy to the CPU must be complete before it is used.
        indices = indices.to(self.values.device, non_blocking=self.values.is_cuda)
        x_dec = _gather(self._x_dec, indices, self.values.shape[1])
        future = x_dec[:, self.label_len :]
        if self.unknown_ahead is None:
            future.zero_()
        else:
            future.masked_fill_(self.unknown_ahead, 0.0)
        return Batch(
            x_enc=_gather(self._x_enc, indices, self.values.shape[1]),
            x_mark_enc=_gather(self._x_mark_enc, indices, self.marks.shape[1]),
            x_dec=x_dec,
            x_mark_dec=_gather(self._x_mark_dec, indices, self.marks.shape[1]),
            y=_gather(self._y, indices, self.targets.shape[1]),
        )


def _blocks(table: Tensor, start: int, steps: int, count: int) -> Tensor:
    """Return a view [count, steps * width] of a table [rows, width]: line i is rows [start + i, start + i + steps)."""
    width = table.shape[1]
    return table[start:].as_strided((count, steps * width), (width, 1))


def _gather(blocks: Tensor, indices: Tensor, width: int) -> Tensor:
    return blocks.index_select(0, indices).view(len(indices), blocks.shape[1] // width, width)


class Splits(NamedTuple):
    """The windows of the three splits, and the scalers fitted on the training rows."""

    train: Windows
    validation: Windows
    test: Windows
    input_scaler: Scaler
    target_scaler: Scaler


def prepare(
    table: Table,
    *,
    targets: Sequence[str],
    inputs: Sequence[str] | None = None,
    seq_len: int,
    label_len: int,
    pred_len: int,
    validation_length: int,
    test_length: int,
    used_rows: int | None = None,
    freq: str = "d",
    decoder_future: str = "zeros",
    enc_in: int | None = None,
    dec_in: int | None = None,
    device: torch.device | str = "cpu",
) -> Splits:
    """Scale `table` by its training rows and put the windows of the three splits on `device`.

    `inputs` are all columns by default. With `decoder_future` `known`, the decoder receives, for the days to
    forecast, the columns of `KNOWN_AHEAD` that are not targets; with `zeros`, none. `enc_in` and `dec_in`, if
    given, must equal the number of inputs. Only the last `used_rows` rows are split; None is all.

    Raises ConfigError for settings that contradict each other or the table, DataError for too few rows, a
    missing column, or values that float32 cannot hold after scaling.
    """
    inputs = table.columns if inputs is None else tuple(inputs)
    for name, width in (("enc_in", enc_in), ("dec_in", dec_in)):
        if width not in (None, len(inputs)):
            raise ConfigError(
                f"model.{name} is {width}, but {table.source} gives {len(inputs)} input columns: "
                f"set model.{name} to {len(inputs)}, or name the columns in data.inputs"
            )
    if not 0 <= label_len <= seq_len:
        raise ConfigError(f"model.label_len {label_len} must lie between 0 and model.seq_len {seq_len}")
    if decoder_future not in ("zeros", "known"):
        raise ConfigError(f"data.decoder_future is {decoder_future!r}: choose zeros or known")
    used = len(table.values) if used_rows is None else used_rows
    if used > len(table.values):
        raise ConfigError(
            f"data.rows is {used}, but {table.source} has {len(table.values)} rows: lower it, or set it to null for all"
        )
    try:
        parts = split_rows(used, seq_len, pred_len, validation_length, test_length)
    except DataError as error:
        raise DataError(f"{table.source}: {error}") from error
    skipped = len(table.values) - used
    rows = SplitRows(*(range(part.start + skipped, part.stop + skipped) for part in parts))

    known = known_ahead(inputs, targets) if decoder_future == "known" else None
    marks = torch.from_numpy(calendar_marks(table.dates, freq)).to(device)
    input_scaler, x = _scale(table, inputs, rows.train)
    target_scaler, y = _scale(table, targets, rows.train)
    x, y = x.to(device), y.to(device)

    def windows(split: range) -> Windows:
        part = slice(split.start, split.stop)
        return Windows(
            x[part],
            marks[part],
            y[part],
            seq_len=seq_len,
            label_len=label_len,
            pred_len=pred_len,
            known_ahead=known,
            first_row=split.start,
        )

    return Splits(windows(rows.train), windows(rows.validation), windows(rows.test), input_scaler, target_scaler)


def window_ahead(
    table: Table,
    future: Table,
    *,
    scaler: Scaler,
    targets: Sequence[str],
    seq_len: int,
    label_len: int,
    freq: str = "d",
    decoder_future: str = "zeros",
    device: torch.device | str = "cpu",
) -> Batch:
    """Return the window after the last row of `table`, to forecast the days of `future`: a batch of one.

    It equals the window that `prepare` would cut if these days were rows, except that its `y` is zero. `scaler` is
    the scaler of the inputs. `future` holds columns that are known ahead: with `decoder_future` `known`, it must hold
    all of `known_ahead(scaler.columns, targets)`; with `zeros`, it needs none.

    Raises DataError for fewer than `seq_len` rows, a missing column, or values that float32 cannot hold.
    """
    if len(table.values) < seq_len:
        raise DataError(
            f"{table.source}: {len(table.values)} rows are too few: the model reads the last {seq_len} (model.seq_len)"
        )
    known = known_ahead(scaler.columns, targets) if decoder_future == "known" else None
    # Columns that are not known ahead get their mean, which is zero after scaling.
    future_values = np.tile(scaler.mean, (len(future.dates), 1))
    for column, name in enumerate(scaler.columns):
        if known is not None and known[column]:
            future_values[:, column] = future.select([name])[:, 0]
    history = table.select(scaler.columns)[-seq_len:]
    dates = np.concatenate([table.dates[-seq_len:], future.dates])
    rows = Table(dates, np.concatenate([history, future_values]), scaler.columns, source=table.source)
    windows = Windows(
        _to_scaled(rows, scaler).to(device),
        torch.from_numpy(calendar_marks(dates, freq)).to(device),
        torch.zeros(len(dates), len(targets), device=device),
        seq_len=seq_len,
        label_len=label_len,
        pred_len=len(future.dates),
        known_ahead=known,
    )
    return windows.batch(torch.zeros(1, dtype=torch.int64))


def known_ahead(inputs: Sequence[str], targets: Sequence[str]) -> Tensor:
    """Return a mask of the `inputs` known ahead: the columns of `KNOWN_AHEAD` that are not targets; bool, [F]."""
    return torch.tensor([name in KNOWN_AHEAD and name not in targets for name in inputs])


def _scale(table: Table, columns: Sequence[str], training_rows: range) -> tuple[Scaler, Tensor]:
    """Fit a scaler on the training rows of `columns` and scale all rows: [n, len(columns)], float32."""
    scaler = Scaler.fit(table.select(columns)[training_rows.start : training_rows.stop], columns)
    return scaler, _to_scaled(table, scaler)


def _to_scaled(table: Table, scaler: Scaler) -> Tensor:
    """Return the columns of `scaler`, scaled by it: [n, F], float32."""
    values = table.select(scaler.columns)
    with np.errstate(over="ignore"):
        scaled = scaler.transform(values).astype(np.float32)
    non_finite = np.argwhere(~np.isfinite(scaled))
    if len(non_finite):
        row, column = non_finite[0]
        raise DataError(
            f"{table.source}: {values[row, column]:g} in column {scaler.columns[column]} on {table.dates[row]} "
            "is too large for float32 after scaling: repair the value"
        )
    return torch.from_numpy(scaled)


def sample_order(n_windows: int, seed: int, epoch: int) -> Tensor:
    """Return a permutation of the windows, int64 [n_windows] on the CPU, that depends only on `seed` and `epoch`.

    The permutation sorts random 64-bit keys from numpy's Philox generator, whose stream is the same on every
    platform and in every version. The shuffling functions of numpy and torch do not guarantee this.
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(n_windows)
    return torch.from_numpy(np.argsort(keys, kind="stable").astype(np.int64))


def batch_indices(
    n_windows: int,
    batch_size: int,
    *,
    seed: int | None = None,
    epoch: int = 0,
    drop_last: bool,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Return an iterator over the indices of each batch, int64 [batch_size].

    The last batch may be shorter; `drop_last` leaves a shorter one out. The order is that of `sample_order`, or
    chronological without `seed`. Raises DataError if no batch would be left.
    """
    if drop_last and n_windows < batch_size:
        raise DataError(
            f"{n_windows} windows do not fill one batch of {batch_size}: lower training.batch_size to "
            f"{n_windows} or less"
        )
    order = torch.arange(n_windows) if seed is None else sample_order(n_windows, seed, epoch)
    used = n_windows - n_windows % batch_size if drop_last else n_windows
    return iter(torch.split(order[:used].to(device), batch_size))
