"""Rows of the training, validation and test splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgat_fast.data.splits import count_windows, minimum_rows, split_rows
from pgat_fast.errors import DataError

LENGTHS = st.integers(1, 60)


def test_production_file_has_specified_windows_and_batches() -> None:
    rows = split_rows(7109, 250, 10, 50, 50)
    assert rows.train == range(0, 7009)
    assert rows.validation == range(6759, 7059)
    assert rows.test == range(6809, 7109)
    windows = [count_windows(len(split), 250, 10) for split in rows]
    assert windows == [6750, 41, 41]
    assert [windows[0] // 16, -(-windows[1] // 16), -(-windows[2] // 16)] == [421, 3, 3]


@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.integers(0, 100))
def test_splits_have_windows_and_disjoint_targets(
    seq_len: int, pred_len: int, validation: int, test: int, spare: int
) -> None:
    validation, test = validation + pred_len - 1, test + pred_len - 1
    n = minimum_rows(seq_len, pred_len, validation, test) + spare
    splits = split_rows(n, seq_len, pred_len, validation, test)
    targets: list[int] = []
    for rows in splits:
        assert rows.start >= 0
        windows = count_windows(len(rows), seq_len, pred_len)
        assert windows == len(rows) - seq_len - pred_len + 1 >= 1
        # From the first target of the first window to the last target of the last window.
        first, last = rows.start + seq_len, rows.start + windows - 1 + seq_len + pred_len - 1
        assert last == rows.stop - 1
        targets += range(first, last + 1)
    # Each row after the first history is forecast in exactly one split.
    assert targets == list(range(seq_len, n))
    assert len(splits.validation) == seq_len + validation
    assert len(splits.test) == seq_len + test


@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS)
def test_too_few_rows_raise_with_minimum(seq_len: int, pred_len: int, validation: int, test: int) -> None:
    validation, test = validation + pred_len, test + pred_len
    minimum = minimum_rows(seq_len, pred_len, validation, test)
    with pytest.raises(DataError, match=f"{minimum - 1} rows are too few: .* at least {minimum} rows"):
        split_rows(minimum - 1, seq_len, pred_len, validation, test)


@pytest.mark.parametrize(("validation", "test", "name"), [(9, 50, "validation_length"), (50, 9, "test_length")])
def test_split_shorter_than_pred_len_raises(validation: int, test: int, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} 9 is shorter than pred_len 10"):
        split_rows(10**6, 250, 10, validation, test)


@pytest.mark.parametrize("position", range(4))
def test_lengths_below_one_raise(position: int) -> None:
    lengths = [5, 2, 3, 4]
    lengths[position] = 0
    name = ("seq_len", "pred_len", "validation_length", "test_length")[position]
    with pytest.raises(DataError, match=f"{name} is 0: it must be at least 1"):
        split_rows(100, *lengths)


def test_too_few_rows_have_no_windows() -> None:
    assert [count_windows(rows, 3, 2) for rows in (0, 4, 5, 6)] == [0, 0, 1, 2]
