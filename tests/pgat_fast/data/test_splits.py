"""Which rows belong to which split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgat_fast.data.splits import count_windows, minimum_rows, split_rows
from pgat_fast.errors import DataError

LENGTHS = st.integers(1, 60)


def test_the_production_file_gives_the_specified_windows_and_batches() -> None:
    rows = split_rows(7109, 250, 10, 50, 50)
    assert rows.train == range(0, 7009)
    assert rows.validation == range(6759, 7059)
    assert rows.test == range(6809, 7109)
    windows = [count_windows(len(split), 250, 10) for split in rows]
    assert windows == [6750, 41, 41]
    assert [windows[0] // 16, -(-windows[1] // 16), -(-windows[2] // 16)] == [421, 3, 3]


@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.integers(0, 100))
def test_every_split_has_windows_and_no_target_is_forecast_in_two(
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
        # The first window's first target to the last window's last.
        first, last = rows.start + seq_len, rows.start + windows - 1 + seq_len + pred_len - 1
        assert last == rows.stop - 1
        targets += range(first, last + 1)
    # Each row after the first history is forecast in exactly one split.
    assert targets == list(range(seq_len, n))
    assert len(splits.validation) == seq_len + validation
    assert len(splits.test) == seq_len + test


@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS)
def test_one_row_less_than_the_minimum_is_refused_with_the_minimum(
    seq_len: int, pred_len: int, validation: int, test: int
) -> None:
    validation, test = validation + pred_len, test + pred_len
    least = minimum_rows(seq_len, pred_len, validation, test)
    with pytest.raises(DataError, match=f"{least - 1} rows are too few: .* at least {least} rows"):
        split_rows(least - 1, seq_len, pred_len, validation, test)


@pytest.mark.parametrize(("validation", "test", "name"), [(9, 50, "validation_length"), (50, 9, "test_length")])
def test_a_split_shorter_than_the_forecast_is_refused_whatever_the_rows(validation: int, test: int, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} 9 is shorter than pred_len 10"):
        split_rows(10**6, 250, 10, validation, test)


@pytest.mark.parametrize("position", range(4))
def test_lengths_below_one_are_refused(position: int) -> None:
    lengths = [5, 2, 3, 4]
    lengths[position] = 0
    name = ("seq_len", "pred_len", "validation_length", "test_length")[position]
    with pytest.raises(DataError, match=f"{name} is 0: it must be at least 1"):
        split_rows(100, *lengths)


def test_no_rows_have_no_windows() -> None:
    assert [count_windows(rows, 3, 2) for rows in (0, 4, 5, 6)] == [0, 0, 1, 2]
