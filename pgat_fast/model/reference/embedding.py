"""Section 2 of docs/model.md: value, calendar and position embeddings, and market context."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_fast.data.columns import CELLS
from pgat_fast.model.shapes import MAX_STEPS


def sinusoidal_positions(steps: int, width: int) -> Tensor:
    """Return positional encodings, sines in even and cosines in odd channels, base 10000: float32 [steps, width].

    Vaswani et al. 2017, section 3.5. Computed in float32 throughout, as for existing checkpoints: exact values differ
    from these by up to 1e-5 within 250 steps, which changes results after the divisions of section 5.
    """
    position = torch.arange(steps, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    table = torch.zeros(steps, width)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency[: width // 2])
    return table


class CalendarEmbedding(nn.Module):
    """Sum of learned vectors for month, day, weekday, hour (and minute)."""

    def __init__(self, width: int, freq: str, integer_marks: bool) -> None:
        super().__init__()
        self.integer_marks = integer_marks
        fields = list(CELLS) if freq == "t" else list(CELLS)[:4]
        # Existing checkpoints have one row more than there are values.
        self.tables = nn.ModuleDict({field: nn.Embedding(CELLS[field] + 1, width) for field in fields})

    def forward(self, marks: Tensor) -> Tensor:
        """Return embeddings [B, S, D] of fractions in [0, 1), [B, S, columns]. Absent columns add nothing."""
        if self.integer_marks:
            marks = marks.trunc()
        total = marks.new_zeros(())
        for column, (field, table) in zip(marks.unbind(-1), self.tables.items(), strict=False):
            index = (column * CELLS[field]).floor().long().clamp(0, CELLS[field] - 1)
            total = total + table(index)
        return total


class Embedding(nn.Module):
    """Sum of a convolution of the values, calendar embedding and positional encoding, with dropout."""

    positions: Tensor

    def __init__(self, features: int, width: int, freq: str, integer_marks: bool, dropout: float) -> None:
        super().__init__()
        self.value = nn.Conv1d(features, width, kernel_size=3, padding=1, bias=False)
        self.calendar = CalendarEmbedding(width, freq, integer_marks)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", sinusoidal_positions(MAX_STEPS, width), persistent=False)

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        """Return embeddings [B, S, D] of values [B, S, F] with marks [B, S, columns]."""
        value = self.value(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(value + self.calendar(marks) + self.positions[: x.shape[1]])


class MarketContext(nn.Module):
    """Market context, computed from the state of the last timestep: [B, S, D] -> [B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, e: Tensor) -> Tensor:
        return self.norm(self.output(F.gelu(self.hidden(e[:, -1]))))
