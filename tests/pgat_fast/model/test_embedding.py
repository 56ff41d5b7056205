"""Section 2: value, calendar and position embeddings, and market context."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pgat_fast.model.reference.embedding import (
    CalendarEmbedding,
    Embedding,
    MarketContext,
    sinusoidal_positions,
)
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import Array, array, normal, randomize

FIELDS = ("month", "day", "weekday", "hour", "minute")
COUNTS = {"month": 12, "day": 31, "weekday": 7, "hour": 24, "minute": 60}


def calendar(layer: CalendarEmbedding, marks: Array, fields: tuple[str, ...], integer: bool) -> Array:
    """Return the sum of table rows for marks [S, columns], column by column."""
    tables = {field: array(layer.get_parameter(f"tables.{field}.weight")) for field in fields}
    result = np.zeros((len(marks), next(iter(tables.values())).shape[1]))
    for s, row in enumerate(marks):
        for field, mark in zip(fields, row, strict=False):
            fraction = int(mark) if integer else mark
            index = math.floor(fraction * COUNTS[field])
            result[s] += tables[field][min(max(index, 0), COUNTS[field] - 1)]
    return result


def fractions(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("freq", ["d", "h", "t"])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("integer", [False, True])
def test_calendar_embedding_sums_table_rows_of_present_columns(freq: str, columns: int, integer: bool) -> None:
    layer = CalendarEmbedding(6, freq, integer)
    randomize(layer)
    marks = 3 * fractions(2, 40, columns) - 1  # also outside [0, 1): the index is clamped
    fields = FIELDS if freq == "t" else FIELDS[:4]
    expected = np.stack([calendar(layer, array(sample), fields, integer) for sample in marks])
    by_hand.assert_equal(layer(marks), expected)


@pytest.mark.parametrize("field", range(5))
def test_float32_marks_select_the_row_of_their_value(field: int) -> None:
    """Check the row of every calendar value, encoded as (value + 0.5) / count."""
    layer = CalendarEmbedding(1, "t", integer_marks=False)
    count = COUNTS[FIELDS[field]]
    with torch.no_grad():
        for name in FIELDS:
            rows = torch.arange(COUNTS[name] + 1)[:, None] * (name == FIELDS[field])
            layer.get_parameter(f"tables.{name}.weight").copy_(rows)
    marks = torch.zeros(1, count, 5)
    marks[0, :, field] = (torch.arange(count) + 0.5) / count
    assert layer(marks)[0, :, 0].tolist() == list(range(count))


def test_integer_marks_map_every_fraction_to_the_first_value() -> None:
    layer = CalendarEmbedding(6, "d", integer_marks=True)
    randomize(layer)
    assert torch.equal(layer(fractions(2, 9, 4)), layer(torch.zeros(2, 9, 4)))


@pytest.mark.parametrize("width", [1, 8, 13])
def test_positions_are_sines_in_even_and_cosines_in_odd_channels(width: int) -> None:
    expected = np.zeros((250, width))
    for step in range(250):
        for channel in range(width):
            angle = step / 10000 ** ((channel - channel % 2) / width)
            expected[step, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    # Angles up to 249 have errors up to 1.5e-5 in float32, and as much again from their frequency.
    by_hand.assert_equal(sinusoidal_positions(250, width), expected, 4e-5)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_embedding_is_convolution_plus_calendar_plus_positions(steps: int) -> None:
    layer = Embedding(5, 8, "d", integer_marks=False, dropout=0.0)
    randomize(layer)
    x, marks = normal(2, steps, 5), fractions(2, steps, 4)
    actual = layer(x, marks)
    for sample in range(2):
        expected = by_hand.convolution(layer.value, array(x[sample]))
        expected += calendar(layer.calendar, array(marks[sample]), FIELDS[:4], integer=False)
        by_hand.assert_equal(actual[sample], expected + array(sinusoidal_positions(steps, 8)))


def test_market_context_is_computed_from_the_last_state() -> None:
    layer = MarketContext(6)
    randomize(layer)
    e = normal(3, 4, 6)
    last = array(e[:, -1])
    hidden = by_hand.gelu(by_hand.linear(layer.hidden, last))
    by_hand.assert_equal(layer(e), by_hand.layer_norm(layer.norm, by_hand.linear(layer.output, hidden)))
