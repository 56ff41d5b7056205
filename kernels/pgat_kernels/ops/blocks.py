"""Transformer blocks as forward passes that return their own backward pass, see `pgat_kernels.ops.vjp`.

They consist of operators with Triton kernels if the argument `kernels`, one of `dispatch.Kernels`, selects them, and of
plain torch, which a compiler may fuse, otherwise. Both compute the same function with the same dropout masks.

The memory traffic (counted by `bench.gpu.cost_model`) determines which operations share a kernel. For the second layer
of the batched combiner at production sizes, M = 676,000 tokens of 208 numbers, float32 activations A = 562 MB, 16-bit
products, in one forward pass:

- Feed-forward: 234 GFLOP, 0.29 ms at 800 TFLOP/s. One kernel reads A and writes A, 0.37 ms at 3 TB/s; two products with
  elementwise operations between them move 5 A, 0.94 ms. So it is one kernel. In the backward pass, writing and reading
  the sum before LayerNorm would take 2 A, and the hidden units 2 A more; recomputing both takes three products of
  117 GFLOP, 0.44 ms against 0.75. So they are recomputed.
- Output projection: 58 GFLOP, 0.07 ms. It moves 2.5 A with residual and LayerNorm in the same kernel, 5 A in pieces.
- Projections to queries, keys and values: 175 GFLOP, 0.22 ms; 2 A are written, and read by attention. Attention that
  computes the projections itself would read its tokens once per head and query tile: 3 times the products of keys and
  values, and 8 A from the second-level cache. So these are two kernels, the first a plain product.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from pgat_kernels.dispatch import Kernels, wanted
from pgat_kernels.ops import plain_blocks
from pgat_kernels.ops.block_operators import MOST_WIDTH, BlockOperator, KernelBackward, KernelForward, Plain
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.graph_attention import MOST_WHOLE, takes
from pgat_kernels.ops.low_rank_attention import LowRankWeights
from pgat_kernels.ops.low_rank_attention import low_rank_attention_block as plain_low_rank_block
from pgat_kernels.ops.plain_blocks import AttentionWeights, FeedForwardWeights, OutputWeights
from pgat_kernels.ops.registration import Backward
from pgat_kernels.ops.vjp import dropout_add_norm, linear

# --- operators --------------------------------------------------------------------------------------------------------


def _of_one_input(block: Callable[..., Any], weights_of: type[Any]) -> Plain:
    """Adapt a block of `plain_blocks` with one tensor of rows to the interface of `BlockOperator`."""

    def plain(rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int) -> tuple[Tensor, Backward]:
        y, back = block(rows[0], weights_of(*weights), masks, site)

        def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            g_t, grads = back(g)
            return [g_t], list(grads)

        return y, backward

    return plain


def _feed_forward_kernels() -> tuple[KernelForward, KernelBackward]:
    from pgat_kernels.triton.feed_forward import feed_forward_backward, feed_forward_forward

    return feed_forward_forward, feed_forward_backward


feed_forward_operator = BlockOperator(
    "feed_forward_block",
    _of_one_input(plain_blocks.feed_forward_block, FeedForwardWeights),
    lambda rows, weights: torch.empty(rows[0].shape, dtype=rows[0].dtype, device=rows[0].device),
    _feed_forward_kernels,
    lambda rows, weights: rows[0].shape[-1] <= MOST_WIDTH,
)
"""Operator: rows [t [G, T, D]], weights `FeedForwardWeights` -> [G, T, D]; see `plain_blocks.feed_forward_block`."""


def _plain_projection(rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int) -> tuple[Tensor, Backward]:
    t, o = rows
    residual, outer, outer_bias, norm, norm_bias = weights
    groups, tokens, inner = o.shape
    width, rank = residual.shape
    y, outer_back = linear(o.reshape(groups * tokens, inner), outer, outer_bias)
    y = y.view(groups, tokens, width)
    result, norm_back = dropout_add_norm(t @ residual.t() if rank else t, y, norm, norm_bias, masks, site)

    def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        g_sum, g_y, g_norm, g_norm_bias = norm_back(g.contiguous())
        g_o, g_outer, g_outer_bias = outer_back(g_y.view(groups * tokens, width))
        g_t, g_residual = g_sum, torch.zeros_like(residual)
        if rank:
            flat = g_sum.view(groups * tokens, width)
            g_t, g_residual = (flat @ residual).view_as(t), flat.t() @ t.reshape(groups * tokens, rank)
        return [g_t, g_o.view_as(o)], [g_residual, g_outer, g_outer_bias, g_norm, g_norm_bias]

    return result, backward


def _projection_kernels() -> tuple[KernelForward, KernelBackward]:
    from pgat_kernels.triton.projection import projection_backward, projection_forward

    return projection_forward, projection_backward


projection_operator = BlockOperator(
    "projection_block",
    _plain_projection,
    lambda rows, weights: rows[0].new_empty((*rows[1].shape[:-1], weights[1].shape[0])),
    _projection_kernels,
    lambda rows, weights: max(weights[1].shape) <= MOST_WIDTH,
    product=1,
)
"""Operator LayerNorm(t + dropout(W o + b)): rows [t [G, T, D], o [G, T, A]], weights [R [D, 0], W [D, A], b and those
of LayerNorm] -> [G, T, D]. With R [D, r] the residual is R s, and rows are [s [G, T, r], o]."""


def _edge_head_kernels() -> tuple[KernelForward, KernelBackward]:
    from pgat_kernels.triton.edge_head import edge_head_backward, edge_head_forward

    return edge_head_forward, edge_head_backward


edge_head_operator = BlockOperator(
    "edge_head",
    _of_one_input(plain_blocks.output_head, OutputWeights),
    lambda rows, weights: rows[0].new_empty(rows[0].shape[:-1]),
    _edge_head_kernels,
    lambda rows, weights: max(weights[0].shape) <= MOST_WIDTH,
)
"""Operator: rows [t [G, T, D]], weights `OutputWeights` -> [G, T] in (-1, 1); see `plain_blocks.output_head`."""


# --- blocks -----------------------------------------------------------------------------------------------------------


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """Apply `pgat::graph_attention` to scaled queries: [G, H, T, d] -> [G, T, H d], and the backward pass."""
    groups, heads, tokens, head = q.shape
    tensor_args = q, k, v, None, bias, masks.seed, masks.first_row
    scalar_args = site, masks.rate, 0.0, 1.0
    o, log_sum_exp = torch.ops.pgat.graph_attention(*tensor_args, *scalar_args)
    saved = (o, log_sum_exp) if tokens > MOST_WHOLE else (None, None)

    def backward(g: Tensor) -> list[Tensor]:
        g_heads = g.view(groups, tokens, heads, head).transpose(1, 2)
        return torch.ops.pgat.graph_attention_backward(g_heads, *tensor_args, *saved, *scalar_args)

    return o.transpose(1, 2).reshape(groups, tokens, heads * head), backward


def _attend_projected(
    qkv: Tensor, shape: tuple[int, int, int, int], bias: Tensor | None, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor | None]]]:
    """Compute `plain_blocks.self_attention` by the graph attention operator: projections [G T, 3 D] -> [G T, D]."""
    groups, n_heads, tokens, head = shape
    q, k, v = qkv.view(groups, tokens, 3, n_heads, head).permute(2, 0, 3, 1, 4).unbind(0)
    o, attend_back = _attend(q, k, v, bias, masks, site)

    def backward(g: Tensor) -> tuple[Tensor, Tensor | None]:
        g_q, g_k, g_v, *g_bias = attend_back(g)
        g_qkv = torch.stack([x.transpose(1, 2) for x in (g_q, g_k, g_v)], dim=2).view(groups * tokens, -1)
        return g_qkv, g_bias[0] if g_bias else None

    return o.view(groups * tokens, n_heads * head), backward


def attention_block(
    t: Tensor,
    w: AttentionWeights,
    n_heads: int,
    masks: Masks,
    site: int,
    bias: Tensor | None = None,
    *,
    kernels: int = Kernels.OFF,
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, AttentionWeights, Tensor | None]]]:
    """Compute `plain_blocks.attention_block`. The choice of kernels is separate for attention and output projection."""
    groups, tokens, width = t.shape
    outer = [w.norm.new_empty(width, 0), *w[2:]]
    attends = takes(tokens, width // n_heads) and wanted(kernels, "graph_attention", t, tokens, w.inner.dtype)
    if not attends and not projection_operator.wanted(kernels, [t], outer):
        return plain_blocks.attention_block(t, w, n_heads, masks, site, bias)
    qkv, inner_back = linear(t.reshape(groups * tokens, width), w.inner, w.inner_bias)
    attend = _attend_projected if attends else plain_blocks.self_attention
    o, attend_back = attend(qkv, (groups, n_heads, tokens, width // n_heads), bias, masks, site)
    y, back = projection_operator.either(kernels, [t, o.view(groups, tokens, width)], outer, masks, site + 1)

    def backward(g: Tensor) -> tuple[Tensor, AttentionWeights, Tensor | None]:
        (g_sum, g_o), (_, *g_outer) = back(g)
        g_qkv, g_bias = attend_back(g_o.reshape(groups * tokens, width))
        g_flat, g_inner, g_inner_bias = inner_back(g_qkv)
        return g_sum + g_flat.view_as(t), AttentionWeights(g_inner, g_inner_bias, *g_outer), g_bias

    return y, backward


BlockWeights = TypeVar("BlockWeights", FeedForwardWeights, OutputWeights)


def _of_one_tensor(
    operator: BlockOperator, t: Tensor, w: BlockWeights, masks: Masks, site: int, kernels: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, BlockWeights]]]:
    """Compute an operator whose only rows are `t`."""
    y, back = operator.either(kernels, [t], w, masks, site)

    def backward(g: Tensor) -> tuple[Tensor, BlockWeights]:
        (g_t,), grads = back(g)
        return g_t, type(w)(*grads)

    return y, backward


def feed_forward_block(
    t: Tensor, w: FeedForwardWeights, masks: Masks, site: int, *, kernels: int = Kernels.OFF
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, FeedForwardWeights]]]:
    """Compute `plain_blocks.feed_forward_block`."""
    return _of_one_tensor(feed_forward_operator, t, w, masks, site, kernels)


def low_rank_attention_block(
    a: Tensor, w: LowRankWeights, masks: Masks, site: int, *, kernels: int = Kernels.OFF
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, LowRankWeights]]]:
    """Compute the block of `pgat_kernels.ops.low_rank_attention`.

    With kernels, keys and values are the same few numbers for all heads. Attention and projection use kernels together
    or not at all, because the plain block never stores the tensor between them.
    """
    groups, tokens, rank = a.shape[0], a.shape[1], a.shape[2] + 1
    if not takes(tokens, rank) or not wanted(kernels, "low_rank_attention", a, tokens):
        return plain_low_rank_block(a, w, masks, site)
    n_heads = w.scores.shape[1] // rank
    s = torch.cat((a, torch.ones_like(a[..., :1])), dim=-1)  # [G, T, r]
    flat = s.view(groups * tokens, rank)
    mapped = (flat @ w.scores).view(groups, tokens, n_heads, rank).transpose(1, 2)
    keys = s[:, None].expand(mapped.shape)
    o, attend_back = _attend(mapped, keys, keys, None, masks, site)
    y, back = projection_operator([s, o], [w.residual, *w[2:]], masks, site + 1)

    def backward(g: Tensor) -> tuple[Tensor, LowRankWeights]:
        (g_s, g_o), (g_residual, *g_outer) = back(g)
        g_heads, g_keys, g_values = attend_back(g_o)
        g_mapped = g_heads.transpose(1, 2).reshape(groups * tokens, n_heads * rank)
        g_s = g_s + (g_keys + g_values).sum(dim=1) + (g_mapped @ w.scores.t()).view_as(s)
        return g_s[..., :-1].contiguous(), LowRankWeights(g_residual, flat.t() @ g_mapped, *g_outer)

    return y, backward


def output_head(
    t: Tensor, w: OutputWeights, masks: Masks, site: int, *, kernels: int = Kernels.OFF
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, OutputWeights]]]:
    """Compute `plain_blocks.output_head`."""
    return _of_one_tensor(edge_head_operator, t, w, masks, site, kernels)
