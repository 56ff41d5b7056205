"""Device functions of kernels over tiles of rows: products, LayerNorm, gelu, dropout.

A tile is BLOCK rows of a contiguous matrix with all their columns, at most 256; the number of columns is rounded up to
a power of two, and padding is zero. Offsets within a tile have 32 bits and are added to a 64-bit base.

The product of rows with a weight has two forms. With CHUNK 0 the rows are a loaded tile, and one product takes all
their columns: for 16 bits, whose operands are in shared memory, if the tile is used more than once. Otherwise the rows
are read CHUNK columns at a time, from memory that the same program may have written: float32 products keep both
operands in registers, which hold no more.
"""

import triton
import triton.language as tl

from pgat_kernels.triton.dropout import keep_tile

_EPSILON = tl.constexpr(1e-5)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_DENSITY = tl.constexpr(0.3989422804014327)
"""Density of the normal distribution at 0."""
LOG2_E = tl.constexpr(1.4426950408889634)
HIDDEN = tl.constexpr(-1.0e30)
"""Score of a hidden key; finite, so that a padding row is not NaN."""


@triton.jit
def owned_rows(rows, BLOCK: tl.constexpr):
    """Return the first of the BLOCK rows that the program owns (int64), and which of them exist."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    return first, first + tl.arange(0, BLOCK) < rows


@triton.jit
def load_row(ptr, i, SIZE: tl.constexpr):
    """Load elements `i` of a vector of SIZE numbers as float32; zeros beyond its end."""
    return tl.load(ptr + i, mask=i < SIZE, other=0.0).to(tl.float32)


@triton.jit
def load_tile(ptr, exists, start, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Load COLUMNS columns, beginning at `start`, of the tile whose first row is at `ptr`, in the stored dtype."""
    inside, at = _within(exists, start, WIDTH, COLUMNS, BLOCK)
    return tl.load(ptr + start + at, mask=inside, other=0.0)


@triton.jit
def store_tile(ptr, x, exists, start, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Store the columns that `load_tile` loads."""
    inside, at = _within(exists, start, WIDTH, COLUMNS, BLOCK)
    tl.store(ptr + start + at, x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _within(exists, start, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Return the mask of the elements of a tile that exist, and their offsets from its first element."""
    column = tl.arange(0, COLUMNS)
    at = tl.arange(0, BLOCK)[:, None] * WIDTH + column[None, :]
    if WIDTH % COLUMNS == 0:
        return exists[:, None] & (column >= 0)[None, :], at
    else:
        return exists[:, None] & (start + column < WIDTH)[None, :], at


@triton.jit
def load_weight(
    ptr, k_start, n_start, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    K_STRIDE: tl.constexpr, N_STRIDE: tl.constexpr,
):  # fmt: skip
    """Load [BLOCK_K, BLOCK_N] of a matrix [K, N], beginning at `k_start` and `n_start`; one of the strides is 1.

    The 32-bit offsets are the same for all tiles of a loop, and only the base moves: 64-bit addresses hoisted out of
    the loop would take half of the registers.
    """
    k, n = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_N)
    ptr += k_start * K_STRIDE + n_start * N_STRIDE
    has_k = k >= 0 if K % BLOCK_K == 0 else k_start + k < K
    has_n = n >= 0 if N % BLOCK_N == 0 else n_start + n < N
    if N_STRIDE == 1:
        return tl.load(ptr + (k[:, None] * K_STRIDE + n[None, :]), mask=has_k[:, None] & has_n[None, :], other=0.0)
    else:
        turned = tl.load(ptr + (n[:, None] * N_STRIDE + k[None, :]), mask=has_n[:, None] & has_k[None, :], other=0.0)
        return tl.trans(turned)


@triton.jit
def product(
    x, x_ptr, exists, w_ptr, n_start, BLOCK_N: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    K_STRIDE: tl.constexpr, N_STRIDE: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Multiply rows [BLOCK, K] by BLOCK_N columns of a weight [K, N], see `load_weight`: float32 [BLOCK, BLOCK_N].

    The rows are the tile `x` [BLOCK, BLOCK_K] in the dtype of the weight, or, if CHUNK is not 0, those at `x_ptr`.
    """
    if CHUNK == 0:
        w = load_weight(w_ptr, 0, n_start, BLOCK_K, BLOCK_N, K, N, K_STRIDE, N_STRIDE)
        return tl.dot(x, w, input_precision=PRECISION)
    else:
        total = tl.zeros((BLOCK, BLOCK_N), tl.float32)
        for start in range(0, K, CHUNK):
            w = load_weight(w_ptr, start, n_start, CHUNK, BLOCK_N, K, N, K_STRIDE, N_STRIDE)
            part = load_tile(x_ptr, exists, start, K, CHUNK, BLOCK).to(w.dtype)
            total = tl.dot(part, w, total, input_precision=PRECISION)
        return total


@triton.jit
def gelu_and_slope(x):
    """Compute the exact gelu and its derivative."""
    below = 0.5 * (1 + tl.erf(x * _SQRT_HALF))
    return x * below, below + x * tl.exp(-0.5 * x * x) * _DENSITY


@triton.jit
def gelu(x):
    return 0.5 * x * (1 + tl.erf(x * _SQRT_HALF))


@triton.jit
def sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def tanh(x):
    """Compute tanh to within 3 roundings: by its series near 0, where 2 sigmoid(2 x) - 1 loses digits."""
    y = x * x
    series = x * (1 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835)))))
    return tl.where(y < 0.0625, series, 2 * sigmoid(2 * x) - 1)


@triton.jit
def normal_and_scale(x, columns, WIDTH: tl.constexpr):
    """Normalise rows of x, which is zero beyond WIDTH, as LayerNorm does before its weight.

    Also return 1 / the standard deviation of every row.
    """
    mean = tl.sum(x, 1) / WIDTH
    centered = tl.where((columns < WIDTH)[None, :], x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centered * centered, 1) / WIDTH + _EPSILON)
    return centered * scale[:, None], scale


@triton.jit
def scaled_normal(normal, norm_ptr, norm_bias_ptr, columns, WIDTH: tl.constexpr):
    """Apply LayerNorm's weight and bias to normalised rows."""
    return normal * load_row(norm_ptr, columns, WIDTH)[None, :] + load_row(norm_bias_ptr, columns, WIDTH)[None, :]


@triton.jit
def keep_rows(
    seed_ptr, first_row_ptr, site_offset, first, columns, dropped,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the dropout mask for BLOCK rows, beginning at `first` (int64), of a matrix [G TOKENS, WIDTH].

    See `keep_tile`.
    """
    row = first + tl.arange(0, BLOCK)
    group, token = row // TOKENS, (row % TOKENS).to(tl.int32)
    group = tl.load(first_row_ptr) + group
    at = token[:, None] * WIDTH + columns[None, :]
    return keep_tile(tl.load(seed_ptr), site_offset, group[:, None], at, dropped, TOKENS * WIDTH)


@triton.jit
def norm_backward(
    normal, scale, g_ptr, row_at, norm_ptr, sum_ptr, g_y_ptr, sums_ptr, exists,
    seed_ptr, first_row_ptr, site_offset, first, dropped, kept_scale,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
    NARROW: tl.constexpr = 32,
):  # fmt: skip
    """Compute the gradient of LayerNorm's argument, a residual plus dropout(y + bias), from that of its result.

    It processes NARROW columns at a time, because the registers do not hold three float32 tiles. `normal` is therefore
    written to memory and read again by other threads of the program, which barriers synchronise.

    Args:
        normal, scale: see `normal_and_scale`.
        g_ptr, row_at: gradient of the result, and offset of every row in it.
        norm_ptr: LayerNorm's weight.
        sum_ptr: float32 rows for the gradient of the argument; holds `normal` temporarily.
        g_y_ptr: rows for the gradient of y.
        sums_ptr: [3, WIDTH] for what these rows add to the gradients of the bias, LayerNorm's weight and LayerNorm's
            bias.
    """
    store_tile(sum_ptr, normal, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK)
    tl.debug_barrier()
    mean = tl.zeros((BLOCK,), tl.float32)
    along = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, NARROW):
        columns = start + tl.arange(0, NARROW)
        inside = exists[:, None] & (columns < WIDTH)[None, :]
        x = load_tile(sum_ptr, exists, start, WIDTH, NARROW, BLOCK)
        g = tl.load(g_ptr + start + (row_at[:, None] + tl.arange(0, NARROW)[None, :]), mask=inside, other=0.0)
        g = g.to(tl.float32)
        tl.store(sums_ptr + WIDTH + columns, tl.sum(g * x, 0), mask=columns < WIDTH)
        tl.store(sums_ptr + 2 * WIDTH + columns, tl.sum(g, 0), mask=columns < WIDTH)
        g *= load_row(norm_ptr, columns, WIDTH)[None, :]
        mean += tl.sum(g, 1) / WIDTH
        along += tl.sum(g * x, 1) / WIDTH
    for start in range(0, WIDTH, NARROW):
        columns = start + tl.arange(0, NARROW)
        inside = exists[:, None] & (columns < WIDTH)[None, :]
        x = load_tile(sum_ptr, exists, start, WIDTH, NARROW, BLOCK)
        g = tl.load(g_ptr + start + (row_at[:, None] + tl.arange(0, NARROW)[None, :]), mask=inside, other=0.0)
        g = g.to(tl.float32) * load_row(norm_ptr, columns, WIDTH)[None, :]
        g = (g - mean[:, None] - x * along[:, None]) * scale[:, None]
        store_tile(sum_ptr, g, exists, start, WIDTH, NARROW, BLOCK)
        if DROPOUT:
            keep = keep_rows(seed_ptr, first_row_ptr, site_offset, first, columns, dropped, TOKENS, WIDTH, BLOCK)
            g = tl.where(keep, g * kept_scale, 0.0)
        g = tl.where(inside, g, 0.0)
        tl.store(sums_ptr + columns, tl.sum(g, 0), mask=columns < WIDTH)
        store_tile(g_y_ptr, g, exists, start, WIDTH, NARROW, BLOCK)
    tl.debug_barrier()
