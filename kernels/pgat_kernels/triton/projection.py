"""Kernels for LayerNorm(t + dropout(W o + b)), an output projection with residual and LayerNorm, forward and backward.

Limits: t and o have at most 256 columns.

Grid: one dimension; program i owns BLOCK rows. The backward kernel recomputes the sum and writes the gradients of t (of
s and, as one partial sum per tile, of R), of o, and of the product's result, from which torch computes that of W.

The residual t may have low rank: t = R s with a few numbers s per row, so that t is never stored (rewrite 4).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.triton.launch import choose, launch_over_rows, rounded, tiles_of, width_arguments
from pgat_kernels.triton.tiles import (
    keep_rows,
    load_row,
    load_tile,
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
    t_ptr, residual_ptr, o_ptr, exists, first, columns, weight_ptr, bias_ptr, seed_ptr, first_row_ptr,
    site_offset, dropped, kept_scale,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, INNER: tl.constexpr, RANK: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    STEP: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the block before LayerNorm's weight, and the scale of every row: see `normal_and_scale`."""
    total = product(
        None, o_ptr, exists, weight_ptr, 0, BLOCK_WIDTH, INNER, WIDTH, 1, INNER, BLOCK_WIDTH, STEP, BLOCK, PRECISION
    )
    total += load_row(bias_ptr, columns, WIDTH)[None, :]
    if DROPOUT:
        keep = keep_rows(seed_ptr, first_row_ptr, site_offset, first, columns, dropped, TOKENS, WIDTH, BLOCK)
        total = tl.where(keep, total * kept_scale, 0.0)
    if RANK == 0:
        total += load_tile(t_ptr, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK).to(tl.float32)
    else:
        for i in tl.static_range(RANK):
            s = tl.load(t_ptr + tl.arange(0, BLOCK) * RANK + i, mask=exists, other=0.0).to(tl.float32)
            r = tl.load(residual_ptr + columns * RANK + i, mask=columns < WIDTH, other=0.0).to(tl.float32)
            total += s[:, None] * r[None, :]
    return normal_and_scale(total, columns, WIDTH)


@triton.jit
def _projection_fwd_kernel(
    t_ptr,  # [M, WIDTH], or s [M, RANK]
    o_ptr,  # [M, INNER]
    residual_ptr,  # R [WIDTH, RANK]; not read if RANK is 0
    weight_ptr,  # [WIDTH, INNER]
    bias_ptr,  # [WIDTH], as norm_ptr, norm_bias_ptr
    norm_ptr,
    norm_bias_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    y_ptr,  # [M, WIDTH]
    rows,
    site_offset,
    dropped,
    kept_scale,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write BLOCK rows of the result."""
    first, exists = owned_rows(rows, BLOCK)
    columns = tl.arange(0, BLOCK_WIDTH)
    normal, _ = _normal(
        t_ptr + first * (RANK if RANK else WIDTH), residual_ptr, o_ptr + first * INNER, exists, first, columns,
        weight_ptr, bias_ptr, seed_ptr, first_row_ptr, site_offset, dropped, kept_scale,
        TOKENS, WIDTH, INNER, RANK, BLOCK_WIDTH, STEP, BLOCK, DROPOUT, PRECISION,
    )  # fmt: skip
    y = scaled_normal(normal, norm_ptr, norm_bias_ptr, columns, WIDTH)
    store_tile(y_ptr + first * WIDTH, y, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK)


@triton.jit
def _projection_bwd_kernel(
    g_ptr,  # [M, WIDTH]
    t_ptr,  # [M, WIDTH], or s [M, RANK]
    o_ptr,  # [M, INNER]
    residual_ptr,  # R [WIDTH, RANK]; not read if RANK is 0
    weight_ptr,  # [WIDTH, INNER]
    bias_ptr,  # [WIDTH], as norm_ptr
    norm_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    g_sum_ptr,  # [M, WIDTH] float32: gradient of the residual
    g_s_ptr,  # [M, RANK] float32; not written if RANK is 0
    g_o_ptr,  # [M, INNER], in the dtype of o
    g_y_ptr,  # [M, WIDTH], gradient of the product's result, in the dtype of the weight
    sums_ptr,  # [tiles, (3 + RANK) WIDTH] float32: of the bias, LayerNorm's weight and bias, R transposed
    rows,
    site_offset,
    dropped,
    kept_scale,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write BLOCK rows of the gradients of t, o and the product's result, and sums over them; recomputes the sum."""
    first, exists = owned_rows(rows, BLOCK)
    columns = tl.arange(0, BLOCK_WIDTH)
    t_ptr += first * (RANK if RANK else WIDTH)
    g_s_ptr += first * RANK
    g_sum_ptr += first * WIDTH
    g_y_ptr += first * WIDTH
    normal, scale = _normal(
        t_ptr, residual_ptr, o_ptr + first * INNER, exists, first, columns,
        weight_ptr, bias_ptr, seed_ptr, first_row_ptr, site_offset, dropped, kept_scale,
        TOKENS, WIDTH, INNER, RANK, BLOCK_WIDTH, STEP, BLOCK, DROPOUT, PRECISION,
    )  # fmt: skip
    sums_ptr += tl.program_id(0).to(tl.int64) * ((3 + RANK) * WIDTH)
    norm_backward(
        normal, scale, g_ptr + first * WIDTH, tl.arange(0, BLOCK) * WIDTH, norm_ptr, g_sum_ptr, g_y_ptr, sums_ptr,
        exists, seed_ptr, first_row_ptr, site_offset, first, dropped, kept_scale,
        TOKENS, WIDTH, BLOCK_WIDTH, BLOCK, DROPOUT,
    )  # fmt: skip
    if RANK > 0:
        g_sum = load_tile(g_sum_ptr, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK)
        for i in tl.static_range(RANK):
            at = tl.arange(0, BLOCK) * RANK + i
            s = tl.load(t_ptr + at, mask=exists, other=0.0).to(tl.float32)
            r = tl.load(residual_ptr + columns * RANK + i, mask=columns < WIDTH, other=0.0).to(tl.float32)
            tl.store(g_s_ptr + at, tl.sum(g_sum * r[None, :], 1), mask=exists)
            tl.store(sums_ptr + (3 + i) * WIDTH + columns, tl.sum(g_sum * s[:, None], 0), mask=columns < WIDTH)
    g_o = product(
        None, g_y_ptr, exists, weight_ptr, 0, BLOCK_INNER, WIDTH, INNER, INNER, 1, BLOCK_WIDTH, STEP, BLOCK, PRECISION
    )
    store_tile(g_o_ptr + first * INNER, g_o, exists, 0, INNER, BLOCK_INNER, BLOCK)


def projection_forward(rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int) -> Tensor:
    """Launch the forward kernel with the contiguous arguments of `pgat_kernels.ops.blocks.projection_operator`."""
    t, o = rows
    weight = weights[1]
    y = torch.empty((*t.shape[:-1], len(weight)), dtype=t.dtype, device=t.device)
    chosen = choose("projection forward", weight, len(weight))
    tensors = (t, o, *weights, masks.seed, masks.first_row, y)
    constants = _sizes(weights, chosen)
    launch_over_rows(_projection_fwd_kernel, tensors, chosen, o, weight, masks, site, sites=1, products=1, **constants)
    return y


def projection_backward(
    g: Tensor, rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Launch the backward kernel; return gradients of the rows and of the weights."""
    t, o = rows
    residual, weight = weights[:2]
    width, inner = weight.shape
    rank = residual.shape[1]
    count = o.numel() // inner
    chosen = choose("projection backward", weight, width)
    g_sum, g_s = (torch.empty((*t.shape[:-1], size), dtype=torch.float32, device=t.device) for size in (width, rank))
    g_o = torch.empty_like(o)
    g_y = torch.empty((count, width), dtype=weight.dtype, device=t.device)
    sums = torch.empty((tiles_of(count, chosen), (3 + rank) * width), dtype=torch.float32, device=t.device)
    tensors = (g, t, o, *weights[:-1], masks.seed, masks.first_row, g_sum, g_s, g_o, g_y, sums)
    constants = {**_sizes(weights, chosen), "BLOCK_INNER": rounded(inner)}
    launch_over_rows(_projection_bwd_kernel, tensors, chosen, o, weight, masks, site, sites=1, products=2, **constants)
    g_bias, g_norm, g_norm_bias, *g_residual = sums.sum(dim=0).view(3 + rank, width).unbind(0)
    g_weight = g_y.t() @ o.view(count, inner).to(weight.dtype)
    of_rank = torch.stack(g_residual, dim=1) if rank else torch.empty_like(residual)
    return [g_s if rank else g_sum, g_o], [of_rank, g_weight, g_bias, g_norm, g_norm_bias]


def _sizes(weights: list[Tensor], chosen: Configuration) -> dict[str, object]:
    """Return the arguments that both kernels share, by name."""
    residual, weight = weights[:2]
    width, inner = weight.shape
    constants = {"INNER": inner, "RANK": residual.shape[1], "STEP": chosen.columns}
    return {**constants, **width_arguments(width, weight.dtype)}
