"""Calendar marks map back to the calendar, in float32 and through the model's embedding."""

from datetime import datetime, timedelta

import numpy as np
import pytest
import torch

from pgat_fast.data.calendar import calendar_marks
from pgat_fast.data.columns import CELLS
from pgat_fast.errors import ConfigError, DataError
from pgat_fast.model.reference.embedding import CalendarEmbedding


def cells_of(marks: np.ndarray) -> np.ndarray:
    """Return the indices that the model computes from marks: clamp(floor(mark * cells), 0, cells - 1), in float32."""
    counts = torch.tensor([CELLS[field] for field in list(CELLS)[: marks.shape[1]]])
    index = (torch.from_numpy(marks) * counts.float()).floor().long()
    return index.clamp(torch.zeros_like(counts), counts - 1).numpy()


def test_marks_map_to_month_day_and_weekday_for_100_years() -> None:
    days = np.arange(np.datetime64("1950-01-01"), np.datetime64("2050-01-01"))
    expected = [[d.month - 1, d.day - 1, d.weekday(), 0] for d in days.tolist()]
    marks = calendar_marks(days)
    assert marks.dtype == np.float32
    assert marks.shape == (len(days), 4)
    assert marks.min() > 0
    assert marks.max() < 1
    assert np.array_equal(cells_of(marks), expected)


def test_marks_map_to_hour_and_minute_for_every_minute_of_a_day() -> None:
    times = [datetime(2024, 2, 29) + timedelta(minutes=minute) for minute in range(24 * 60)]
    expected = [[1, 28, 3, time.hour, time.minute] for time in times]
    assert np.array_equal(cells_of(calendar_marks(np.array(times, dtype="datetime64[s]"), "t")), expected)
    hourly = calendar_marks(np.array(times, dtype="datetime64[s]"), "h")
    assert np.array_equal(cells_of(hourly), np.array(expected)[:, :4])


def test_bfloat16_marks_map_to_same_cells_unlike_cell_edges() -> None:
    times = np.datetime64("2024-01-01T00:00") + np.arange(0, 366 * 24 * 60, 61)
    marks = calendar_marks(times, "t")
    rounded = torch.from_numpy(marks).bfloat16().float()
    assert np.array_equal(cells_of(rounded.numpy()), cells_of(marks))
    edges = torch.arange(60) / 60
    assert ((edges.bfloat16().float() * 60).floor().long() != torch.arange(60)).sum() == 21


def test_days_before_1970_map_to_correct_cells() -> None:
    assert cells_of(calendar_marks(np.array(["1969-12-31"], dtype="datetime64[D]"))).tolist() == [[11, 30, 2, 0]]


def test_marks_select_expected_rows_of_calendar_embedding() -> None:
    embedding = CalendarEmbedding(6, "d", integer_marks=False)
    marks = torch.from_numpy(calendar_marks(np.array(["2024-12-31"], dtype="datetime64[D]")))
    tables = [table.weight[cell] for table, cell in zip(embedding.tables.values(), (11, 30, 1, 0), strict=True)]
    assert torch.equal(embedding(marks[None])[0, 0], sum(tables[1:], tables[0]))


def test_unknown_frequency_and_missing_date_raise() -> None:
    with pytest.raises(ConfigError, match=r"model.freq is 'w'"):
        calendar_marks(np.array(["2024-01-01"], dtype="datetime64[D]"), "w")
    with pytest.raises(DataError, match="date 1 of 2"):
        calendar_marks(np.array(["2024-01-01", "NaT"], dtype="datetime64[D]"))
