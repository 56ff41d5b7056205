"""Rows of the training, validation and test splits. Arithmetic only."""

from typing import NamedTuple

from pgat_fast.errors import DataError


class SplitRows(NamedTuple):
    """The rows of each split, as ranges of row indices of the table.

    Validation and test begin with `seq_len` rows of history that also belong to the previous split; no row is
    forecast in two splits.
    """

    train: range
    validation: range
    test: range


def minimum_rows(seq_len: int, pred_len: int, validation_length: int, test_length: int) -> int:
    """Return the smallest number of rows that leaves a window in every split."""
    return seq_len + pred_len + validation_length + test_length


def count_windows(rows: int, seq_len: int, pred_len: int) -> int:
    """Return the number of windows of seq_len + pred_len consecutive rows in `rows` rows."""
    return max(0, rows - seq_len - pred_len + 1)


def split_rows(n: int, seq_len: int, pred_len: int, validation_length: int, test_length: int) -> SplitRows:
    """Split `n` rows: test forecasts the last `test_length` rows, validation the `validation_length` rows before them.

    Raises DataError if a split would hold no window; the message gives the smallest sufficient number of rows.
    """
    lengths = {"seq_len": seq_len, "pred_len": pred_len}
    targets = {"validation_length": validation_length, "test_length": test_length}
    for name, length in (lengths | targets).items():
        if length < 1:
            raise DataError(f"{name} is {length}: it must be at least 1")
    for name, length in targets.items():
        if length < pred_len:
            raise DataError(
                f"{name} {length} is shorter than pred_len {pred_len}, so that no window fits: "
                f"raise {name} to {pred_len} or more, or lower pred_len"
            )
    minimum = minimum_rows(seq_len, pred_len, validation_length, test_length)
    if n < minimum:
        raise DataError(
            f"{n} rows are too few: seq_len {seq_len}, pred_len {pred_len}, validation_length "
            f"{validation_length} and test_length {test_length} need at least {minimum} rows; "
            "add rows or lower one of the four"
        )
    return SplitRows(
        train=range(0, n - test_length - validation_length),
        validation=range(n - test_length - seq_len - validation_length, n - test_length),
        test=range(n - seq_len - test_length, n),
    )
