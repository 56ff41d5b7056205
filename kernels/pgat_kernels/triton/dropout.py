"""Dropout masks inside kernels, bitwise equal to those of `pgat_kernels.ops.dropout.keep_mask`."""

import triton
import triton.language as tl

from pgat_kernels.ops.dropout import FACTORS, KEY_FACTORS
from pgat_kernels.ops.dropout import LANES as DECISIONS

_KEY_FACTORS = tl.constexpr(KEY_FACTORS)
_FACTORS = tl.constexpr(FACTORS)
_DECISIONS = tl.constexpr(DECISIONS)


@triton.jit
def _key(x):
    """Return the key of a site: the hash of an int64 number."""
    x = (x ^ (x >> 30)) * _KEY_FACTORS[0]
    x = (x ^ (x >> 27)) * _KEY_FACTORS[1]
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _hash(counter, key):
    """Return the hash of int32 numbers; `key` is an int64."""
    x = counter + key.to(tl.int32)
    x = (x ^ ((x >> 16) & 0xFFFF)) * _FACTORS[0] ^ (key >> 32).to(tl.int32)
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _FACTORS[1]
    return x ^ ((x >> 16) & 0xFFFF)


@triton.jit
def keep_tile(seed, site_offset, rows, columns, dropped, COLUMNS: tl.constexpr):
    """Return the dropout mask of a matrix with COLUMNS columns: int1, of the broadcast shape of `rows` and `columns`.

    Args:
        seed: int64, see `pgat_kernels.ops.dropout.draw_seed`.
        site_offset: see `pgat_kernels.ops.dropout.site_offset`.
        rows, columns: indices of the elements, int64 and int32.
        dropped: the first code that is kept, int32.
    """
    LANES: tl.constexpr = (COLUMNS + _DECISIONS - 1) // _DECISIONS
    # Columns are not negative, so shifts and masks replace // and %, which would handle the sign.
    x = _hash((rows * LANES).to(tl.int32) + (columns >> 2), _key(seed + site_offset))
    codes = (x >> ((columns & 3) << 3)) & 0xFF
    return codes >= dropped


@triton.jit
def keep_weights(
    seed_ptr, site_offset, graph, head, queries, keys, dropped, HEADS: tl.constexpr, NODES: tl.constexpr
):  # fmt: skip
    """Return the dropout mask of attention weights: int1 [len(queries), len(keys)].

    The rows of the mask are the queries of all heads of all graphs. `graph` (int64, a scalar or one for each query)
    is counted from the first graph of the whole tensor.
    """
    rows = (graph * HEADS + head) * NODES + queries
    return keep_tile(tl.load(seed_ptr), site_offset, rows[:, None], keys[None, :], dropped, NODES)
