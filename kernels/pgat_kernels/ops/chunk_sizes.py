"""Division of independent rows into chunks: how many rows, which ones, padded to one shape."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from pgat_kernels.instrumentation import chunk_device_type, has_few_chunks

CACHE: Final = 5 * 2**20
"""Bytes of the largest intermediate result of a chunk on a CPU. A few results of this size fit into the caches of
current processors and are reused from the heap. The C library returns larger ones to the system and fetches them again,
page by page (measured with 12 MB: a third of a training step)."""

OCCUPANCY: Final = 256 * 2**20
"""Bytes of the largest intermediate result of a chunk on a GPU, which a chunk must fill."""


def auto_chunk(rows: int, bytes_a_row: int, device: torch.device) -> int:
    """Return the number of rows per chunk: as many as fit, evenly spread over the chunks.

    Args:
        rows: total number of rows.
        bytes_a_row: size of the largest intermediate result of one row.
        device: on which the chunks are computed.
    """
    max_rows = max(1, (CACHE if chunk_device_type(device) == "cpu" else OCCUPANCY) // bytes_a_row)
    chunks = -(-rows // max_rows)
    return -(-rows // chunks)


def take(x: Tensor, start: int, chunk: int) -> Tensor:
    """Return rows `start` to `start + chunk` of `x`, zero-padded so that all chunks have the same shape."""
    part = x[start : start + chunk]
    missing = chunk - part.shape[0]
    return F.pad(part, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else part


def starts(count: int, chunk: int) -> list[int]:
    """Return the first row of every chunk; within `few_chunks`, of the first two and of a last partial one."""
    offsets = list(range(0, count, chunk))
    if not has_few_chunks():
        return offsets
    return [*offsets[:2], *(start for start in offsets[2:] if start + chunk > count)]
