"""Hierarchical combiner: merges the three adjacencies of a timestep, given its context, into one (rewrites 2, 5, 7).

Timesteps are independent, see `chunked_ops`. In addition,

- attention of the tokens to their context, where every key is the same vector, is the value path of that vector,
  computed once per timestep (derived in `uniform_attention`, which also draws its dropout if requested);
- attention of the context, one query per timestep, to the three kinds of an edge applies the key projection to the
  query and the value projection after the weighted sum (derived in `query_attention`);
- W [y; context] = W_y y + W_c context, whose second part is one product per timestep.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgat_kernels.dispatch import Kernels
from pgat_kernels.ops.blocks import attention_block, feed_forward_block, output_head
from pgat_kernels.ops.chunked_ops import Backward, Masks, RowsOperator
from pgat_kernels.ops.edge_tokens import EdgeTransform, edge_tokens
from pgat_kernels.ops.uniform_attention import dropped_weight_sums
from pgat_kernels.ops.vjp import (
    AttentionWeights,
    FeedForwardWeights,
    OutputWeights,
    dropout_add_norm,
    gelu,
    linear,
    mlp,
    sigmoid,
)

KINDS = 3
PAIRS = ((0, 1), (0, 2), (1, 2))
"""Pairs of kinds whose values interact."""
SITES = 6
"""Number of dropout sites of a block."""


class ContextWeights(NamedTuple):
    """Weights of the attention to the context, with residual and LayerNorm."""

    value: Tensor
    value_bias: Tensor
    outer: Tensor
    outer_bias: Tensor
    norm: Tensor
    norm_bias: Tensor


class BlockWeights(NamedTuple):
    """Weights of one fusion block."""

    attention: AttentionWeights
    context: ContextWeights
    feed_forward: FeedForwardWeights


class QueryWeights(NamedTuple):
    """Weights of the attention to the kinds of an edge. `query` includes 1 / sqrt(d); the key bias drops out."""

    query: Tensor
    query_bias: Tensor
    key: Tensor
    value: Tensor
    value_bias: Tensor
    outer: Tensor
    outer_bias: Tensor


class PairWeights(NamedTuple):
    """Weights of the interaction of two kinds: 2 -> A -> B -> D, times sigmoid(modulation of the context)."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    third: Tensor
    third_bias: Tensor
    modulation: Tensor
    modulation_bias: Tensor


class CalibrationWeights(NamedTuple):
    """Weights of the gate: [y; context] -> D -> D -> D; the first map is split into two parts."""

    first: Tensor
    """[D, D], applied to y"""
    context: Tensor
    """[D, D], applied to the context"""
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    third: Tensor
    third_bias: Tensor


class HierarchicalWeights(NamedTuple):
    """Weights of the whole combiner."""

    transforms: tuple[EdgeTransform, ...]
    blocks: tuple[BlockWeights, ...]
    query: QueryWeights
    interactions: tuple[PairWeights, ...]
    calibration: CalibrationWeights
    output: OutputWeights

    def flat(self) -> list[Tensor]:
        """Return all weights in one list, in the order of `from_flat`."""
        blocks = [group for block in self.blocks for group in block]
        groups = (*self.transforms, *blocks, self.query, *self.interactions, self.calibration, self.output)
        return [tensor for group in groups for tensor in group]


_BLOCK = len(AttentionWeights._fields) + len(ContextWeights._fields) + len(FeedForwardWeights._fields)
_REST = (
    KINDS * (len(EdgeTransform._fields) + len(PairWeights._fields))
    + len(QueryWeights._fields)
    + len(CalibrationWeights._fields)
    + len(OutputWeights._fields)
)


def from_flat(tensors: list[Tensor]) -> HierarchicalWeights:
    """Return the weights whose `HierarchicalWeights.flat` is `tensors`."""
    remaining = iter(tensors)

    def take(count: int) -> list[Tensor]:
        return [next(remaining) for _ in range(count)]

    return HierarchicalWeights(
        tuple(EdgeTransform(*take(8)) for _ in range(KINDS)),
        tuple(
            BlockWeights(AttentionWeights(*take(6)), ContextWeights(*take(6)), FeedForwardWeights(*take(6)))
            for _ in range((len(tensors) - _REST) // _BLOCK)
        ),
        QueryWeights(*take(7)),
        tuple(PairWeights(*take(8)) for _ in PAIRS),
        CalibrationWeights(*take(7)),
        OutputWeights(*take(4)),
    )


def context_block(
    t: Tensor, context: Tensor, w: ContextWeights, masks: Masks, site: int, keys: int, dropped_heads: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, ContextWeights]]]:
    """Compute LayerNorm(t + dropout(attention to the context)): [M, T, D], [M, D] -> [M, T, D].

    The attention is computed as its value path. If `dropped_heads` is above 0, the weights of that many heads over
    `keys` identical keys have dropout, with the site `site` + 1; see `uniform_attention`.
    """
    rows, tokens, width = t.shape
    v, value_back = linear(context, w.value, w.value_bias)
    if dropped_heads and masks.rate > 0:
        shape = (rows, tokens, dropped_heads)
        sums = dropped_weight_sums(keys, shape, masks.rate, masks.seed, site + 1, masks.first_row).to(v.dtype)
        by_head = v.view(rows, dropped_heads, -1).transpose(0, 1)  # [H, M, d]
        outer = w.outer.view(width, dropped_heads, -1).transpose(0, 1)  # [H, D, d]
        of_heads = torch.bmm(by_head, outer.transpose(1, 2)).transpose(0, 1)  # [M, H, D]
        o = torch.bmm(sums, of_heads) + w.outer_bias

        def attention_back(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            cast_g = g.to(v.dtype)
            g_heads = torch.bmm(sums.transpose(1, 2), cast_g).transpose(0, 1)  # [H, M, D]
            g_outer = torch.bmm(g_heads.transpose(1, 2), by_head).transpose(0, 1).reshape(width, width)
            g_v = torch.bmm(g_heads, outer).transpose(0, 1).reshape(rows, width)
            return g_v, g_outer.to(t.dtype), g.sum(dim=(0, 1), dtype=t.dtype)

    else:
        once, outer_back = linear(v, w.outer, w.outer_bias)
        o = once[:, None]

        def attention_back(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return outer_back(g.sum(dim=1))

    result, norm_back = dropout_add_norm(t, o, w.norm, w.norm_bias, masks, site)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, ContextWeights]:
        g_sum, g_o, g_norm, g_norm_bias = norm_back(g)
        g_v, g_outer, g_outer_bias = attention_back(g_o)
        g_context, g_value, g_value_bias = value_back(g_v)
        grads = ContextWeights(g_value, g_value_bias, g_outer, g_outer_bias, g_norm, g_norm_bias)
        return g_sum, g_context.to(context.dtype), grads

    return result, backward


def _weighted_tokens(kept: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum weights [M, N, 3, N, H] times tokens [M, N, 3, N, D] over the kinds: [M, N, N, H, D]."""
    return (kept[..., None] * t[..., None, :]).sum(dim=2).to(dtype)


def _weighted_tokens_backward(g: Tensor, kept: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    g = g.to(t.dtype)
    return (g * t[..., None, :]).sum(dim=-1), (kept[..., None] * g).sum(dim=-2)


def edge_query_attention(
    t: Tensor, context: Tensor, w: QueryWeights, n_heads: int, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, QueryWeights]]]:
    """Attend from the context to the three kinds of each edge: [M, N, 3, N, D], [M, D] -> [M N N, D]."""
    rows, nodes, kinds, _, width = t.shape
    head = width // n_heads
    dtype = w.value.dtype
    q, query_back = linear(context, w.query, w.query_bias)
    q = q.view(rows, n_heads, head).transpose(0, 1)  # [H, M, d]
    key = w.key.view(n_heads, head, width)
    on_query = torch.bmm(q, key).transpose(0, 1)  # [M, H, D]
    cast_tokens = t.to(dtype).view(rows, nodes * kinds * nodes, width)
    scores = torch.bmm(cast_tokens, on_query.transpose(1, 2)).to(t.dtype)
    p = torch.softmax(scores.view(rows, nodes, kinds, nodes, n_heads), dim=2)
    keep = None if masks.rate == 0 else masks.keep(site, p)
    kept = p * masks.scale if keep is None else (p * masks.scale).mul_(keep.to(p.dtype))
    z = masks.run(_weighted_tokens, kept, t, dtype).view(-1, n_heads, width).transpose(0, 1)
    value = w.value.view(n_heads, head, width)
    attended = torch.bmm(z, value.transpose(1, 2)).transpose(0, 1).reshape(-1, width) + w.value_bias
    if keep is not None:  # dropped weights do not add up to 1, and scale the bias
        total = kept.sum(dim=2).to(dtype).view(-1, n_heads, 1)
        attended = attended + ((total - 1) * w.value_bias.view(n_heads, head)).view(-1, width)
    y, outer_back = linear(attended, w.outer, w.outer_bias)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, QueryWeights]:
        g_attended, g_outer, g_outer_bias = outer_back(g)
        acc_dtype = t.dtype
        by_head = g_attended.view(-1, n_heads, head)
        g_z = torch.bmm(by_head.transpose(0, 1), value)  # [H, M E, D]
        g_value = torch.bmm(by_head.permute(1, 2, 0), z).to(acc_dtype).reshape(width, width)
        g_z = g_z.transpose(0, 1).reshape(rows, nodes, 1, nodes, n_heads, width)
        g_kept, g_t = masks.run(_weighted_tokens_backward, g_z, kept, t)
        if keep is None:
            g_value_bias = g_attended.sum(dim=0, dtype=acc_dtype)
            g_p = g_kept * masks.scale
        else:
            by_bias = (by_head * w.value_bias.view(n_heads, head)).sum(dim=-1, dtype=acc_dtype)
            g_kept = g_kept + by_bias.view(rows, nodes, 1, nodes, n_heads)
            g_value_bias = (by_head.to(acc_dtype) * total.to(acc_dtype)).sum(dim=0).view(width)
            g_p = (g_kept * masks.scale).mul_(keep.to(p.dtype))
        g_scores = p * (g_p - (p * g_p).sum(dim=2, keepdim=True))
        g_scores = g_scores.view(rows, -1, n_heads).to(dtype)
        g_t = g_t + torch.bmm(g_scores, on_query).to(acc_dtype).view_as(t)
        g_on_query = torch.bmm(g_scores.transpose(1, 2), cast_tokens).transpose(0, 1)  # [H, M, D]
        g_key = torch.bmm(q.transpose(1, 2), g_on_query).to(acc_dtype).reshape(width, width)
        g_q = torch.bmm(g_on_query, key.transpose(1, 2)).transpose(0, 1).reshape(rows, width)
        g_context, g_query, g_query_bias = query_back(g_q)
        grads = QueryWeights(g_query, g_query_bias, g_key, g_value, g_value_bias, g_outer, g_outer_bias)
        return g_t, g_context.to(acc_dtype), grads

    return y, backward


def pair_interaction(
    pair: Tensor, context: Tensor, w: PairWeights
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, PairWeights]]]:
    """Compute the interaction of the values of two kinds, given the context: [M, E, 2], [M, D] -> [M, E, D]."""
    rows, edges, _ = pair.shape
    layers = ((w.first, w.first_bias), (w.second, w.second_bias), (w.third, w.third_bias))
    x, back = mlp(pair.reshape(-1, 2), layers)
    x = x.view(rows, edges, -1)
    logits, modulation_back = linear(context, w.modulation, w.modulation_bias)
    gate, gate_back = sigmoid(logits, pair.dtype)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, PairWeights]:
        g_context, g_modulation, g_modulation_bias = modulation_back(gate_back((g * x).sum(dim=1)))
        g_pair, grads = back((g * gate[:, None]).view(rows * edges, -1))
        return (
            g_pair.to(pair.dtype).view_as(pair),
            g_context.to(pair.dtype),
            PairWeights._make([*grads, g_modulation, g_modulation_bias]),
        )

    return x * gate[:, None], backward


def calibration(
    y: Tensor, context: Tensor, w: CalibrationWeights
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, CalibrationWeights]]]:
    """Compute y * sigmoid(MLP([y; context])): [M, E, D], [M, D] -> [M, E, D]."""
    rows, edges, width = y.shape
    flat = y.view(rows * edges, width)
    per_edge, per_edge_back = linear(flat, w.first, torch.zeros_like(w.first_bias))
    shared, shared_back = linear(context, w.context, w.first_bias)
    h, gelu_back = gelu((per_edge.view(rows, edges, width) + shared[:, None]).view(rows * edges, width))
    logits, back = mlp(h, ((w.second, w.second_bias), (w.third, w.third_bias)))
    gate, gate_back = sigmoid(logits, y.dtype)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, CalibrationWeights]:
        g = g.view(rows * edges, width)
        g_h, grads = back(gate_back(g * flat))
        g_sum = gelu_back(g_h)
        g_flat, g_first, _ = per_edge_back(g_sum)
        g_context, g_shared, g_bias = shared_back(g_sum.view(rows, edges, width).sum(dim=1))
        g_y = (g * gate + g_flat).view_as(y)
        return g_y, g_context.to(y.dtype), CalibrationWeights(g_first, g_shared, g_bias, *grads)

    return (flat * gate).view_as(y), backward


def combine(
    values: Tensor,
    context: Tensor,
    w: HierarchicalWeights,
    n_heads: int,
    masks: Masks,
    exact_dropout: bool = False,
    kernels: int = Kernels.OFF,
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, HierarchicalWeights]]]:
    """Merge the values of the edges of M timesteps, given their contexts.

    [M, N, N, 3], [M, D] -> [M, N, N] in (-1, 1), and the backward pass.
    """
    rows, nodes = values.shape[:2]
    edges, width = nodes * nodes, context.shape[-1]
    of_groups = masks._replace(first_row=masks.first_row * nodes)
    t, tokens_back = edge_tokens(values, w.transforms, kernels=kernels)
    backs = []
    for layer, block in enumerate(w.blocks):
        t, attention_back = attention_block(t, block.attention, n_heads, of_groups, SITES * layer, kernels=kernels)
        by_step = t.view(rows, KINDS * edges, width)
        by_step, context_back = context_block(
            by_step, context, block.context, masks, SITES * layer + 2, KINDS * nodes, n_heads * exact_dropout
        )
        t, feed_forward_back = feed_forward_block(
            by_step.view_as(t), block.feed_forward, of_groups, SITES * layer + 4, kernels=kernels
        )
        backs.append((attention_back, context_back, feed_forward_back))
    site = SITES * len(w.blocks)
    t = t.view(rows, nodes, KINDS, nodes, width)
    attended, query_back = edge_query_attention(t, context, w.query, n_heads, masks, site)
    y = attended.to(values.dtype).view(rows, edges, width)
    flat_values = values.view(rows, edges, KINDS)
    pair_backs = []
    for pair, interaction in zip(PAIRS, w.interactions, strict=True):
        x, pair_back = pair_interaction(torch.stack([flat_values[..., k] for k in pair], dim=-1), context, interaction)
        y = y + x
        pair_backs.append(pair_back)
    y, calibration_back = calibration(y, context, w.calibration)
    result, output_back = output_head(y, w.output, masks, site + 1, kernels=kernels)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, HierarchicalWeights]:
        g_y, g_output = output_back(g.view(rows, edges))
        g_y, g_context, g_calibration = calibration_back(g_y)
        g_values = torch.zeros_like(flat_values)
        g_pairs = []
        for pair, pair_back in zip(PAIRS, pair_backs, strict=True):
            g_pair, g_context_part, grads = pair_back(g_y)
            g_context = g_context + g_context_part
            zero = torch.zeros_like(g_pair[..., 0])
            parts = [g_pair[..., pair.index(kind)] if kind in pair else zero for kind in range(KINDS)]
            g_values = g_values + torch.stack(parts, dim=-1)
            g_pairs.append(grads)
        g_t, g_context_part, g_query = query_back(g_y.view(rows * edges, width))
        g_context = g_context + g_context_part
        g_t = g_t.view(rows * nodes, KINDS * nodes, width)
        g_blocks = []
        for attention_back, context_back, feed_forward_back in reversed(backs):
            g_t, g_feed_forward = feed_forward_back(g_t)
            g_step, g_context_part, g_context_weights = context_back(g_t.view(rows, KINDS * edges, width))
            g_context = g_context + g_context_part
            g_t, g_attention, _ = attention_back(g_step.view_as(g_t))
            g_blocks.append(BlockWeights(g_attention, g_context_weights, g_feed_forward))
        g_tokens, g_transforms = tokens_back(g_t)
        blocks = tuple(reversed(g_blocks))
        grads_of_all = HierarchicalWeights(g_transforms, blocks, g_query, tuple(g_pairs), g_calibration, g_output)
        return g_tokens + g_values.view_as(values), g_context, grads_of_all

    return result.view(rows, nodes, nodes), backward


# --- the operator -----------------------------------------------------------------------------------------------------


def numbers_a_timestep(nodes: int, width: int) -> int:
    """Return the size of the largest intermediate result of a timestep: feed-forward hidden layers, 4 D per token."""
    return KINDS * nodes * nodes * 4 * width


def _narrow(weights: list[Tensor], dtype: torch.dtype, options: Sequence[int]) -> list[Tensor]:
    """Return the weights with those of products in `dtype`; maps of one or two numbers are unchanged."""
    w = from_flat(weights)

    def low(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.to(dtype) for tensor in tensors]

    return HierarchicalWeights(
        tuple(EdgeTransform._make([*group[:2], *low(group[2:6]), *group[6:]]) for group in w.transforms),
        tuple(
            BlockWeights(
                block.attention.narrow(dtype),
                ContextWeights._make([*low(block.context[:4]), *block.context[4:]]),
                block.feed_forward.narrow(dtype),
            )
            for block in w.blocks
        ),
        QueryWeights(*low(w.query)),
        tuple(PairWeights(*group[:2], *low(group[2:])) for group in w.interactions),
        CalibrationWeights(*low(w.calibration)),
        OutputWeights(*low(w.output)),
    ).flat()


def _program(
    rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
) -> tuple[Tensor, Backward]:
    n_heads, exact_dropout, kernels = options
    y, back = combine(rows[0], rows[1], from_flat(weights), n_heads, masks, bool(exact_dropout), kernels)

    def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        g_values, g_context, grads = back(g)
        return [g_values, g_context], grads.flat()

    return y, backward


hierarchical_combiner = RowsOperator(
    "hierarchical_combiner", _program, lambda rows: rows[0].new_empty(rows[0].shape[:3]), _narrow
)
"""Operator that merges the adjacencies of M timesteps: rows [values [M, N, N, 3], context [M, D]], weights
`HierarchicalWeights.flat()`, options [n_heads, whether dropout over identical keys is exact (0 or 1), one of
`Kernels`] -> [M, N, N] in (-1, 1). Sections 6b and 13 of docs/model.md."""
