"""Kernels for edge tokens, LayerNorm(W3 gelu(W2 gelu(W1 x))) of one number x, forward and backward, for all kinds.

Limits: first layer and tokens have at most 256 columns; the second layer may have any width.

Grid: one dimension; program (kind, tile) owns BLOCK edges of one kind. Edges are read in their layout, [edges, kinds],
and tokens are written in that of attention, grouped by source node: [groups, kinds, nodes, WIDTH]. The first layer is
recomputed from x at every use, the second is computed COLUMNS units at a time. The backward kernel writes the factors
of the products for the gradients of W2 and W3; sums over all edges are written as one partial sum per tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.triton.launch import choose, chunk_of, launch, rounded, tiles_of, width_arguments
from pgat_kernels.triton.tiles import (
    gelu,
    gelu_and_slope,
    load_row,
    load_tile,
    load_weight,
    norm_backward,
    normal_and_scale,
    product,
    scaled_normal,
    store_tile,
)
from pgat_kernels.tuning_table import Configuration


@triton.jit
def _second(
    x, n_start, first_ptr, first_bias_ptr, second_ptr, second_bias_ptr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute units of the second layer, beginning at `n_start`, before their gelu: [BLOCK, COLUMNS]."""
    total = tl.zeros((BLOCK, COLUMNS), tl.float32)
    n = n_start + tl.arange(0, COLUMNS)
    for start in range(0, FIRST, STEP):
        k = start + tl.arange(0, STEP)
        a = gelu(x[:, None] * load_row(first_ptr, k, FIRST)[None, :] + load_row(first_bias_ptr, k, FIRST)[None, :])
        w = load_weight(second_ptr, start, n_start, STEP, COLUMNS, FIRST, SECOND, 1, FIRST)
        total = tl.dot(a.to(w.dtype), w, total, input_precision=PRECISION)
    return total + load_row(second_bias_ptr, n, SECOND)[None, :]


@triton.jit
def _normal(
    x, columns, first_ptr, first_bias_ptr, second_ptr, second_bias_ptr, third_ptr, third_bias_ptr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
    STEP: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the tokens before LayerNorm's weight, and the scale of every row: see `normal_and_scale`."""
    total = tl.zeros((BLOCK, BLOCK_WIDTH), tl.float32)
    for start in tl.range(0, SECOND, COLUMNS, disable_licm=True):
        h = _second(
            x, start, first_ptr, first_bias_ptr, second_ptr, second_bias_ptr, FIRST, SECOND, COLUMNS, STEP, BLOCK,
            PRECISION,
        )  # fmt: skip
        w = load_weight(third_ptr, start, 0, COLUMNS, BLOCK_WIDTH, SECOND, WIDTH, 1, SECOND)
        total = tl.dot(gelu(h).to(w.dtype), w, total, input_precision=PRECISION)
    return normal_and_scale(total + load_row(third_bias_ptr, columns, WIDTH)[None, :], columns, WIDTH)


@triton.jit
def _token_offsets(first, kind, NODES: tl.constexpr, KINDS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Return the base offset (int64) of the tokens of the program, and the offset of every token from it [BLOCK]."""
    group = first // NODES
    row = (first - group * NODES).to(tl.int32) + tl.arange(0, BLOCK)  # relative to the first edge of the group
    token = row // NODES * (KINDS * NODES) + row % NODES
    return (group * KINDS + kind) * (NODES * WIDTH), token * WIDTH


@triton.jit
def _edge_tokens_fwd_kernel(
    values_ptr,  # [M, KINDS]
    first_ptr,  # [KINDS, FIRST]
    first_bias_ptr,  # [KINDS, FIRST]
    second_ptr,  # [KINDS, SECOND, FIRST]
    second_bias_ptr,  # [KINDS, SECOND]
    third_ptr,  # [KINDS, WIDTH, SECOND]
    third_bias_ptr,  # [KINDS, WIDTH], as norm_ptr, norm_bias_ptr
    norm_ptr,
    norm_bias_ptr,
    y_ptr,  # [M / NODES, KINDS, NODES, WIDTH]
    rows,
    tiles,
    NODES: tl.constexpr,
    KINDS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the tokens of BLOCK edges of one kind."""
    kind = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK
    exists = first + tl.arange(0, BLOCK) < rows
    columns = tl.arange(0, BLOCK_WIDTH)
    x = tl.load(values_ptr + first * KINDS + tl.arange(0, BLOCK) * KINDS + kind, mask=exists, other=0.0).to(tl.float32)
    normal, _ = _normal(
        x, columns, first_ptr + kind * FIRST, first_bias_ptr + kind * FIRST, second_ptr + kind * (SECOND * FIRST),
        second_bias_ptr + kind * SECOND, third_ptr + kind * (WIDTH * SECOND), third_bias_ptr + kind * WIDTH,
        FIRST, SECOND, WIDTH, BLOCK_WIDTH, COLUMNS, STEP, BLOCK, PRECISION,
    )  # fmt: skip
    y = scaled_normal(normal, norm_ptr + kind * WIDTH, norm_bias_ptr + kind * WIDTH, columns, WIDTH)
    base, row_at = _token_offsets(first, kind, NODES, KINDS, WIDTH, BLOCK)
    at = row_at[:, None] + columns[None, :]
    tl.store(y_ptr + base + at, y.to(y_ptr.dtype.element_ty), mask=exists[:, None] & (columns < WIDTH)[None, :])


@triton.jit
def _edge_tokens_bwd_kernel(
    g_ptr,  # shaped as y of the forward kernel
    values_ptr,  # [M, KINDS]
    first_ptr,  # [KINDS, FIRST], as first_bias_ptr
    first_bias_ptr,
    second_ptr,  # [KINDS, SECOND, FIRST]
    second_bias_ptr,  # [KINDS, SECOND]
    third_ptr,  # [KINDS, WIDTH, SECOND]
    third_bias_ptr,  # [KINDS, WIDTH], as norm_ptr
    norm_ptr,
    g_values_ptr,  # [M, KINDS]
    g_sum_ptr,  # [KINDS, M, WIDTH] float32: gradient of the third product's result
    g_y_ptr,  # the same in the dtype of W2 and W3, as the next three
    a_second_ptr,  # [KINDS, M, SECOND], units
    g_second_ptr,  # [KINDS, M, SECOND], gradient of the second product's result
    a_first_ptr,  # [KINDS, M, FIRST], units
    sums_ptr,  # [KINDS, tiles, 2 FIRST + SECOND + 3 WIDTH]: of W1, its bias, the others, LayerNorm's weight and bias
    rows,
    tiles,
    NODES: tl.constexpr,
    KINDS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_FIRST: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write, for BLOCK edges of one kind, the gradient of their values and the factors of the weights' gradients.

    Recomputes the forward pass.
    """
    kind = tl.program_id(0) // tiles
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK
    row = tl.arange(0, BLOCK)
    exists = first + row < rows
    columns = tl.arange(0, BLOCK_WIDTH)
    first_ptr += kind * FIRST
    first_bias_ptr += kind * FIRST
    second_ptr += kind * (SECOND * FIRST)
    second_bias_ptr += kind * SECOND
    third_ptr += kind * (WIDTH * SECOND)
    flat_first = kind * tl.cast(rows, tl.int64) + first
    sums_ptr += tl.program_id(0).to(tl.int64) * (2 * FIRST + SECOND + 3 * WIDTH)
    x = tl.load(values_ptr + first * KINDS + row * KINDS + kind, mask=exists, other=0.0).to(tl.float32)
    normal, scale = _normal(
        x, columns, first_ptr, first_bias_ptr, second_ptr, second_bias_ptr, third_ptr, third_bias_ptr + kind * WIDTH,
        FIRST, SECOND, WIDTH, BLOCK_WIDTH, COLUMNS, STEP, BLOCK, PRECISION,
    )  # fmt: skip
    base, row_at = _token_offsets(first, kind, NODES, KINDS, WIDTH, BLOCK)
    g_y_ptr += flat_first * WIDTH
    # There is no dropout: its arguments are placeholders that are not read.
    norm_backward(
        normal, scale, g_ptr + base, row_at, norm_ptr + kind * WIDTH, g_sum_ptr + flat_first * WIDTH, g_y_ptr,
        sums_ptr + 2 * FIRST + SECOND, exists, values_ptr, values_ptr, 0, first, 0, 1.0,
        1, WIDTH, BLOCK_WIDTH, BLOCK, False,
    )  # fmt: skip
    g_y = load_tile(g_y_ptr, exists, 0, WIDTH, BLOCK_WIDTH, BLOCK) if CHUNK == 0 else None
    k = tl.arange(0, BLOCK_FIRST)
    g_first = tl.zeros((BLOCK, BLOCK_FIRST), tl.float32)
    for start in tl.range(0, SECOND, COLUMNS, disable_licm=True):
        n = start + tl.arange(0, COLUMNS)
        h = _second(
            x, start, first_ptr, first_bias_ptr, second_ptr, second_bias_ptr, FIRST, SECOND, COLUMNS, STEP, BLOCK,
            PRECISION,
        )  # fmt: skip
        a, slope = gelu_and_slope(h)
        g_h = slope * product(
            g_y, g_y_ptr, exists, third_ptr, start, COLUMNS, WIDTH, SECOND, SECOND, 1, BLOCK_WIDTH, CHUNK, BLOCK,
            PRECISION,
        )  # fmt: skip
        store_tile(a_second_ptr + flat_first * SECOND, a, exists, start, SECOND, COLUMNS, BLOCK)
        store_tile(g_second_ptr + flat_first * SECOND, g_h, exists, start, SECOND, COLUMNS, BLOCK)
        tl.store(sums_ptr + 2 * FIRST + n, tl.sum(g_h, 0), mask=n < SECOND)
        w = load_weight(second_ptr, start, 0, COLUMNS, BLOCK_FIRST, SECOND, FIRST, FIRST, 1)
        g_first = tl.dot(g_h.to(w.dtype), w, g_first, input_precision=PRECISION)
    w_first = load_row(first_ptr, k, FIRST)
    a, slope = gelu_and_slope(x[:, None] * w_first[None, :] + load_row(first_bias_ptr, k, FIRST)[None, :])
    store_tile(a_first_ptr + flat_first * FIRST, a, exists, 0, FIRST, BLOCK_FIRST, BLOCK)
    g_first *= slope
    tl.store(sums_ptr + k, tl.sum(g_first * x[:, None], 0), mask=k < FIRST)
    tl.store(sums_ptr + FIRST + k, tl.sum(g_first, 0), mask=k < FIRST)
    g_x = tl.sum(g_first * w_first[None, :], 1)
    tl.store(g_values_ptr + first * KINDS + row * KINDS + kind, g_x.to(g_values_ptr.dtype.element_ty), mask=exists)


def edge_tokens_forward(rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int) -> Tensor:
    """Launch the forward kernel with the contiguous arguments of `pgat_kernels.ops.edge_tokens`' operator."""
    (values,) = rows
    steps, nodes, _, kinds = values.shape
    width = weights[6].shape[1]
    y = torch.empty((steps * nodes, kinds * nodes, width), dtype=values.dtype, device=values.device)
    chosen = choose("edge_tokens forward", weights[2], width)
    _launch(_edge_tokens_fwd_kernel, (values, *weights, y), chosen, values, weights, (1, 1))
    return y


def edge_tokens_backward(
    g: Tensor, rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Launch the backward kernel; return gradients of the values and of the weights."""
    (values,) = rows
    kinds, second, first = weights[2].shape
    width, dtype, device = weights[6].shape[1], weights[2].dtype, values.device
    count = values.numel() // kinds
    chosen = choose("edge_tokens backward", weights[2], width)
    g_values = torch.empty_like(values)
    g_y, a_second, g_second, a_first = (
        torch.empty((kinds, count, size), dtype=dtype, device=device) for size in (width, second, second, first)
    )
    sums_shape = kinds, tiles_of(count, chosen), 2 * first + second + 3 * width
    sums = torch.empty(sums_shape, dtype=torch.float32, device=device)
    g_sum = torch.empty((kinds, count, width), dtype=torch.float32, device=device)
    tensors = (g, values, *weights[:-1], g_values, g_sum, g_y, a_second, g_second, a_first, sums)
    constants = {"BLOCK_FIRST": rounded(first), "CHUNK": chunk_of(dtype)}
    _launch(_edge_tokens_bwd_kernel, tensors, chosen, values, weights, (3, 2), **constants)
    sizes = [first, first, second, width, width, width]
    of_first, of_first_bias, *biases, of_norm, of_norm_bias = sums.sum(dim=1).split(sizes, dim=1)
    of_second, of_third = g_second.transpose(1, 2) @ a_first, g_y.transpose(1, 2) @ a_second
    return [g_values], [of_first, of_first_bias, of_second, biases[0], of_third, biases[1], of_norm, of_norm_bias]


def _launch(
    kernel: triton.JITFunction,
    tensors: tuple[Tensor, ...],
    chosen: Configuration,
    values: Tensor,
    weights: list[Tensor],
    products: tuple[int, int],
    **named: int,
) -> None:
    """Launch a kernel; `products` are its numbers of products with the sizes of W2 and of W3."""
    kinds, second, first = weights[2].shape
    width, dtype = weights[6].shape[1], weights[2].dtype
    count = values.numel() // kinds
    tiles = tiles_of(count, chosen)
    step = chosen.columns if dtype.itemsize == 4 else rounded(first)
    flops = 2 * kinds * count * second * (products[0] * first + products[1] * width)
    launch(
        kernel, kinds * tiles, tensors, chosen, flops, rows=count, tiles=tiles, NODES=values.shape[1], KINDS=kinds,
        FIRST=first, SECOND=second, COLUMNS=chosen.columns, STEP=step, **named, **width_arguments(width, dtype),
    )  # fmt: skip
