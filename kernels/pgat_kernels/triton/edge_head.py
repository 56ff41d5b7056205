"""Kernels for tanh(W2 dropout(gelu(W1 t))), one number per token, forward and backward.

Limits: tokens and hidden layer have at most 256 columns.

Grid: one dimension; program i owns BLOCK tokens. The backward kernel recomputes the hidden layer and writes its
gradient, from which torch computes that of W1; sums over all tokens are written as one partial sum per tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.triton.launch import choose, launch_over_rows, rounded, tiles_of, width_arguments
from pgat_kernels.triton.tiles import gelu_and_slope, keep_rows, load_row, owned_rows, product, store_tile, tanh
from pgat_kernels.tuning_table import Configuration


@triton.jit
def _hidden(
    t_ptr, exists, first, n, inner_ptr, inner_bias_ptr, seed_ptr, first_row_ptr, site_offset, dropped, kept_scale,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute hidden units after dropout, and their derivative by the result of the first product: [BLOCK, len(n)]."""
    h = product(
        None, t_ptr, exists, inner_ptr, 0, BLOCK_HIDDEN, WIDTH, HIDDEN, 1, WIDTH, BLOCK_WIDTH, STEP, BLOCK, PRECISION
    )
    a, slope = gelu_and_slope(h + load_row(inner_bias_ptr, n, HIDDEN)[None, :])
    if DROPOUT:
        keep = keep_rows(seed_ptr, first_row_ptr, site_offset, first, n, dropped, TOKENS, HIDDEN, BLOCK)
        a = tl.where(keep, a * kept_scale, 0.0)
        slope = tl.where(keep, slope * kept_scale, 0.0)
    return a, slope


@triton.jit
def _edge_head_fwd_kernel(
    t_ptr,  # [M, WIDTH]
    inner_ptr,  # [HIDDEN, WIDTH]
    inner_bias_ptr,  # [HIDDEN]
    outer_ptr,  # [HIDDEN]
    outer_bias_ptr,  # [1]
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    y_ptr,  # [M]
    rows,
    site_offset,
    dropped,
    kept_scale,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the results of BLOCK tokens."""
    first, exists = owned_rows(rows, BLOCK)
    row = tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_HIDDEN)
    a, _ = _hidden(
        t_ptr + first * WIDTH, exists, first, n, inner_ptr, inner_bias_ptr, seed_ptr, first_row_ptr, site_offset,
        dropped, kept_scale, TOKENS, WIDTH, HIDDEN, BLOCK_WIDTH, BLOCK_HIDDEN, STEP, BLOCK, DROPOUT,
        PRECISION,
    )  # fmt: skip
    logits = tl.sum(a * load_row(outer_ptr, n, HIDDEN)[None, :], 1) + tl.load(outer_bias_ptr).to(tl.float32)
    tl.store(y_ptr + first + row, tanh(logits).to(y_ptr.dtype.element_ty), mask=exists)


@triton.jit
def _edge_head_bwd_kernel(
    g_ptr,  # [M]
    t_ptr,  # [M, WIDTH]
    inner_ptr,  # [HIDDEN, WIDTH]
    inner_bias_ptr,  # [HIDDEN]
    outer_ptr,  # [HIDDEN]
    outer_bias_ptr,  # [1]
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    g_t_ptr,  # [M, WIDTH]
    g_h_ptr,  # [M, HIDDEN], gradient of the first product's result, in the dtype of the weights
    sums_ptr,  # [tiles, 2 HIDDEN + 1] float32: gradients of the first bias, W2 and its bias
    rows,
    site_offset,
    dropped,
    kept_scale,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write gradients of BLOCK tokens and of their hidden units, and sums over them; recomputes the hidden units."""
    first, exists = owned_rows(rows, BLOCK)
    row = tl.arange(0, BLOCK)
    n = tl.arange(0, BLOCK_HIDDEN)
    a, slope = _hidden(
        t_ptr + first * WIDTH, exists, first, n, inner_ptr, inner_bias_ptr, seed_ptr, first_row_ptr, site_offset,
        dropped, kept_scale, TOKENS, WIDTH, HIDDEN, BLOCK_WIDTH, BLOCK_HIDDEN, STEP, BLOCK, DROPOUT,
        PRECISION,
    )  # fmt: skip
    w = load_row(outer_ptr, n, HIDDEN)
    y = tanh(tl.sum(a * w[None, :], 1) + tl.load(outer_bias_ptr).to(tl.float32))
    g_logits = tl.load(g_ptr + first + row, mask=exists, other=0.0).to(tl.float32) * (1 - y * y)
    g_h = g_logits[:, None] * w[None, :] * slope
    sums_ptr += tl.program_id(0).to(tl.int64) * (2 * HIDDEN + 1)
    tl.store(sums_ptr + n, tl.sum(g_h, 0), mask=n < HIDDEN)
    tl.store(sums_ptr + HIDDEN + n, tl.sum(g_logits[:, None] * a, 0), mask=n < HIDDEN)
    # Sum over columns as above: triton's compiler fails on sm_100 for the sum of a vector that is itself a sum.
    of_bias = tl.sum(tl.where((n == 0)[None, :], g_logits[:, None], 0.0), 0)
    tl.store(sums_ptr + 2 * HIDDEN + n, of_bias, mask=n == 0)
    g_h_ptr += first * HIDDEN
    store_tile(g_h_ptr, g_h, exists, 0, HIDDEN, BLOCK_HIDDEN, BLOCK)
    tl.debug_barrier()  # other threads of the program read the tile
    g_t = product(
        None, g_h_ptr, exists, inner_ptr, 0, BLOCK_WIDTH, HIDDEN, WIDTH, WIDTH, 1, BLOCK_HIDDEN, STEP, BLOCK, PRECISION
    )
    store_tile(g_t_ptr + first * WIDTH, g_t, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK)


def edge_head_forward(rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int) -> Tensor:
    """Launch the forward kernel with the contiguous arguments of `pgat_kernels.ops.blocks.edge_head_operator`."""
    (t,) = rows
    inner = weights[0]
    y = torch.empty(t.shape[:-1], dtype=t.dtype, device=t.device)
    chosen = choose("edge_head forward", inner, len(inner))
    tensors = (t, *weights, masks.seed, masks.first_row, y)
    constants = _sizes(inner, chosen)
    launch_over_rows(_edge_head_fwd_kernel, tensors, chosen, t, inner, masks, site, sites=1, products=1, **constants)
    return y


def edge_head_backward(
    g: Tensor, rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Launch the backward kernel; return gradients of the rows and of the weights."""
    (t,) = rows
    inner = weights[0]
    hidden, width = inner.shape
    count = t.numel() // width
    chosen = choose("edge_head backward", inner, hidden)
    g_t = torch.empty_like(t)
    g_h = torch.empty((count, hidden), dtype=inner.dtype, device=t.device)
    sums = torch.empty((tiles_of(count, chosen), 2 * hidden + 1), dtype=torch.float32, device=t.device)
    tensors = (g, t, *weights, masks.seed, masks.first_row, g_t, g_h, sums)
    constants = _sizes(inner, chosen)
    launch_over_rows(_edge_head_bwd_kernel, tensors, chosen, t, inner, masks, site, sites=1, products=2, **constants)
    g_inner_bias, g_outer, g_outer_bias = sums.sum(dim=0).split([hidden, hidden, 1])
    g_inner = g_h.t() @ t.view(count, width).to(inner.dtype)
    return [g_t], [g_inner, g_inner_bias, g_outer, g_outer_bias]


def _sizes(inner: Tensor, chosen: Configuration) -> dict[str, object]:
    """Return the arguments that both kernels share, by name."""
    hidden, width = inner.shape
    constants = {"HIDDEN": hidden, "BLOCK_HIDDEN": rounded(hidden), "STEP": chosen.columns}
    return {**constants, **width_arguments(width, inner.dtype)}
