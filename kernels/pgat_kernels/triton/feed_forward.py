"""Kernels for LayerNorm(t + dropout(W2 dropout(gelu(W1 t)))): one forward, one backward followed by two products.

Limits: rows have at most 256 columns; hidden layers may have any width.

Grid: one dimension; program i owns BLOCK rows. The hidden layer is computed COLUMNS units at a time, and never stored
in the forward pass. The backward kernel recomputes the sum after the second product, then loops over the hidden layer
again, and writes the factors of the products for the gradients of the weights: the hidden units, their gradients, and
that of the second product's result. Sums over all rows (biases, LayerNorm) are written as one partial sum per tile,
which torch adds up in order: there are no atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.triton.launch import choose, chunk_of, launch_over_rows, tiles_of, width_arguments
from pgat_kernels.triton.tiles import (
    gelu,
    gelu_and_slope,
    keep_rows,
    load_row,
    load_tile,
    load_weight,
    norm_backward,
    normal_and_scale,
    owned_rows,
    product,
    scaled_normal,
    store_tile,
)
from pgat_kernels.tuning_table import Configuration


@triton.jit
def _normal(
    low, t_ptr, exists, first, columns, inner_ptr, inner_bias_ptr, outer_ptr, outer_bias_ptr, seed_ptr, first_row_ptr,
    site_offset, second_site_offset, dropped, kept_scale,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the block before LayerNorm's weight, and the scale of every row: see `normal_and_scale`."""
    total = tl.zeros((BLOCK, BLOCK_WIDTH), tl.float32)
    for start in tl.range(0, HIDDEN, COLUMNS, disable_licm=True):
        n = start + tl.arange(0, COLUMNS)
        h = product(
            low, t_ptr, exists, inner_ptr, start, COLUMNS, WIDTH, HIDDEN, 1, WIDTH, BLOCK_WIDTH, CHUNK, BLOCK, PRECISION
        )
        a = gelu(h + load_row(inner_bias_ptr, n, HIDDEN)[None, :])
        if DROPOUT:
            keep = keep_rows(seed_ptr, first_row_ptr, site_offset, first, n, dropped, TOKENS, HIDDEN, BLOCK)
            a = tl.where(keep, a * kept_scale, 0.0)
        w = load_weight(outer_ptr, start, 0, COLUMNS, BLOCK_WIDTH, HIDDEN, WIDTH, 1, HIDDEN)
        total = tl.dot(a.to(w.dtype), w, total, input_precision=PRECISION)
    total += load_row(outer_bias_ptr, columns, WIDTH)[None, :]
    if DROPOUT:
        keep = keep_rows(seed_ptr, first_row_ptr, second_site_offset, first, columns, dropped, TOKENS, WIDTH, BLOCK)
        total = tl.where(keep, total * kept_scale, 0.0)
    tl.debug_barrier()  # keeps the compiler from holding the rows in registers since their first use
    total += load_tile(t_ptr, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK).to(tl.float32)
    return normal_and_scale(total, columns, WIDTH)


@triton.jit
def _feed_forward_fwd_kernel(
    t_ptr,  # [M, WIDTH], as y_ptr
    inner_ptr,  # [HIDDEN, WIDTH]
    inner_bias_ptr,  # [HIDDEN]
    outer_ptr,  # [WIDTH, HIDDEN]
    outer_bias_ptr,  # [WIDTH], as norm_ptr, norm_bias_ptr
    norm_ptr,
    norm_bias_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    y_ptr,
    rows,
    site_offset,
    second_site_offset,
    dropped,
    kept_scale,
    TOKENS: tl.constexpr,  # rows per dropout row number
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write BLOCK rows of the result."""
    first, exists = owned_rows(rows, BLOCK)
    columns = tl.arange(0, BLOCK_WIDTH)
    t_ptr += first * WIDTH
    t = load_tile(t_ptr, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK).to(inner_ptr.dtype.element_ty) if CHUNK == 0 else None
    normal, _ = _normal(
        t, t_ptr, exists, first, columns, inner_ptr, inner_bias_ptr, outer_ptr, outer_bias_ptr, seed_ptr,
        first_row_ptr, site_offset, second_site_offset, dropped, kept_scale, TOKENS, WIDTH, HIDDEN, BLOCK_WIDTH,
        COLUMNS, CHUNK, BLOCK, DROPOUT, PRECISION,
    )  # fmt: skip
    y = scaled_normal(normal, norm_ptr, norm_bias_ptr, columns, WIDTH)
    store_tile(y_ptr + first * WIDTH, y, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK)


@triton.jit
def _feed_forward_bwd_kernel(
    g_ptr,  # [M, WIDTH], as t_ptr, g_t_ptr (float32), g_y_ptr
    t_ptr,
    inner_ptr,  # [HIDDEN, WIDTH]
    inner_bias_ptr,  # [HIDDEN]
    outer_ptr,  # [WIDTH, HIDDEN]
    outer_bias_ptr,  # [WIDTH], as norm_ptr
    norm_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    g_t_ptr,
    g_y_ptr,  # gradient of the second product's result, in the dtype of the weights, as a_ptr, g_h_ptr
    a_ptr,  # [M, HIDDEN], hidden units, as g_h_ptr
    g_h_ptr,  # gradient of the first product's result
    sums_ptr,  # [tiles, HIDDEN + 3 WIDTH] float32: of the biases (inner, outer), LayerNorm's weight and bias
    rows,
    site_offset,
    second_site_offset,
    dropped,
    kept_scale,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write BLOCK rows of the gradient and of the factors of the weights' gradients; recomputes the forward pass."""
    first, exists = owned_rows(rows, BLOCK)
    columns = tl.arange(0, BLOCK_WIDTH)
    t_ptr += first * WIDTH
    g_y_ptr += first * WIDTH
    a_ptr += first * HIDDEN
    g_h_ptr += first * HIDDEN
    sums_ptr += tl.program_id(0).to(tl.int64) * (HIDDEN + 3 * WIDTH)
    t = load_tile(t_ptr, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK).to(inner_ptr.dtype.element_ty) if CHUNK == 0 else None
    normal, scale = _normal(
        t, t_ptr, exists, first, columns, inner_ptr, inner_bias_ptr, outer_ptr, outer_bias_ptr, seed_ptr,
        first_row_ptr, site_offset, second_site_offset, dropped, kept_scale, TOKENS, WIDTH, HIDDEN, BLOCK_WIDTH,
        COLUMNS, CHUNK, BLOCK, DROPOUT, PRECISION,
    )  # fmt: skip
    g_t_ptr += first * WIDTH
    norm_backward(
        normal, scale, g_ptr + first * WIDTH, tl.arange(0, BLOCK) * WIDTH, norm_ptr, g_t_ptr, g_y_ptr,
        sums_ptr + HIDDEN, exists, seed_ptr, first_row_ptr, second_site_offset, first, dropped, kept_scale,
        TOKENS, WIDTH, BLOCK_WIDTH, BLOCK, DROPOUT,
    )  # fmt: skip
    g_y = load_tile(g_y_ptr, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK) if CHUNK == 0 else None
    g_t = load_tile(g_t_ptr, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK)
    for start in tl.range(0, HIDDEN, COLUMNS, disable_licm=True):
        n = start + tl.arange(0, COLUMNS)
        h = product(
            t, t_ptr, exists, inner_ptr, start, COLUMNS, WIDTH, HIDDEN, 1, WIDTH, BLOCK_WIDTH, CHUNK, BLOCK, PRECISION
        )
        a, slope = gelu_and_slope(h + load_row(inner_bias_ptr, n, HIDDEN)[None, :])
        g_a = product(
            g_y, g_y_ptr, exists, outer_ptr, start, COLUMNS, WIDTH, HIDDEN, HIDDEN, 1, BLOCK_WIDTH, CHUNK, BLOCK,
            PRECISION,
        )  # fmt: skip
        if DROPOUT:
            keep = keep_rows(seed_ptr, first_row_ptr, site_offset, first, n, dropped, TOKENS, HIDDEN, BLOCK)
            a = tl.where(keep, a * kept_scale, 0.0)
            g_a = tl.where(keep, g_a * kept_scale, 0.0)
        g_h = g_a * slope
        store_tile(a_ptr, a, exists, start, HIDDEN, COLUMNS, BLOCK)
        store_tile(g_h_ptr, g_h, exists, start, HIDDEN, COLUMNS, BLOCK)
        tl.store(sums_ptr + n, tl.sum(g_h, 0), mask=n < HIDDEN)
        w = load_weight(inner_ptr, start, 0, COLUMNS, BLOCK_WIDTH, HIDDEN, WIDTH, WIDTH, 1)
        g_t = tl.dot(g_h.to(w.dtype), w, g_t, input_precision=PRECISION)
    store_tile(g_t_ptr, g_t, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK)


def feed_forward_forward(rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int) -> Tensor:
    """Launch the forward kernel with the contiguous arguments of `pgat_kernels.ops.blocks.feed_forward_operator`."""
    (t,) = rows
    inner = weights[0]
    y = torch.empty_like(t)
    chosen = choose("feed_forward forward", inner, t.shape[-1])
    tensors = (t, *weights, masks.seed, masks.first_row, y)
    constants = _sizes(inner, chosen)
    launch_over_rows(_feed_forward_fwd_kernel, tensors, chosen, t, inner, masks, site, sites=2, products=2, **constants)
    return y


def feed_forward_backward(
    g: Tensor, rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Launch the backward kernel; return gradients of the rows and of the weights."""
    (t,) = rows
    inner = weights[0]
    hidden, width = inner.shape
    count = t.numel() // width
    dtype = inner.dtype
    chosen = choose("feed_forward backward", inner, width)
    g_t = torch.empty(t.shape, dtype=torch.float32, device=t.device)
    g_y = torch.empty((count, width), dtype=dtype, device=t.device)
    a, g_h = (torch.empty((count, hidden), dtype=dtype, device=t.device) for _ in range(2))
    sums = torch.empty((tiles_of(count, chosen), hidden + 3 * width), dtype=torch.float32, device=t.device)
    tensors = (g, t, *weights[:-1], masks.seed, masks.first_row, g_t, g_y, a, g_h, sums)
    constants = _sizes(inner, chosen)
    launch_over_rows(_feed_forward_bwd_kernel, tensors, chosen, t, inner, masks, site, sites=2, products=5, **constants)
    g_inner_bias, g_outer_bias, g_norm, g_norm_bias = sums.sum(dim=0).split([hidden, width, width, width])
    g_inner = g_h.t() @ t.view(count, width).to(dtype)
    return [g_t], [g_inner, g_inner_bias, g_y.t() @ a, g_outer_bias, g_norm, g_norm_bias]


def _sizes(inner: Tensor, chosen: Configuration) -> dict[str, object]:
    """Return the arguments that both kernels share, by name."""
    hidden, width = inner.shape
    chunk = chunk_of(inner.dtype)
    return {"HIDDEN": hidden, "COLUMNS": chosen.columns, "CHUNK": chunk, **width_arguments(width, inner.dtype)}
