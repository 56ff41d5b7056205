"""Dropout masks inside kernels: bit for bit those of `pgat_kernels.dropout.keep_mask`."""

import triton
import triton.language as tl

from pgat_kernels.dropout import FACTORS

_FIRST_FACTOR = tl.constexpr(FACTORS[0])
_SECOND_FACTOR = tl.constexpr(FACTORS[1])
_LOGICAL = tl.constexpr(2**33 - 1)


@triton.jit
def _mix(x):
    """The hash of int64 numbers."""
    x = (x ^ (x >> 30)) * _FIRST_FACTOR
    x = (x ^ (x >> 27)) * _SECOND_FACTOR
    return x ^ ((x >> 31) & _LOGICAL)


@triton.jit
def keep_tile(seed, site_offset, rows, columns, dropped, COLUMNS: tl.constexpr):
    """Which elements of a matrix with COLUMNS columns are kept: int1, of the shape of `rows` and `columns` broadcast.

    `seed`: int64, see `pgat_kernels.dropout.draw_seed`. `site_offset`: the function of that name there. `rows` (int64),
    `columns` (int32): numbers of the elements. `dropped`: the first code that is kept, int32.
    """
    LANES: tl.constexpr = (COLUMNS + 1) // 2
    x = _mix(rows * LANES + columns // 2 + _mix(seed + site_offset))
    codes = tl.where(columns % 2 == 0, x.to(tl.int32), (x >> 32).to(tl.int32))
    return codes >= dropped
