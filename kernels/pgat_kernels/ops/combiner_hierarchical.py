"""Hierarchical combiner: merges the three adjacencies of a timestep, given its context, into one (rewrites 2, 5, 7).

Timesteps are independent, see `chunked_ops`. The parts besides transformer blocks are in `hierarchical_parts`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgat_kernels.dispatch import Kernels
from pgat_kernels.ops.blocks import attention_block, feed_forward_block, output_head
from pgat_kernels.ops.chunked_ops import RowsOperator
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.edge_tokens import EdgeTransform, edge_tokens
from pgat_kernels.ops.hierarchical_parts import (
    CalibrationWeights,
    ContextWeights,
    PairWeights,
    QueryWeights,
    calibration,
    context_block,
    edge_query_attention,
    pair_interaction,
)
from pgat_kernels.ops.plain_blocks import AttentionWeights, FeedForwardWeights, OutputWeights, narrow_products
from pgat_kernels.ops.registration import Backward

KINDS = 3
PAIRS = ((0, 1), (0, 2), (1, 2))
"""Pairs of kinds whose values interact."""
SITES = 6
"""Number of dropout sites of a block."""


class BlockWeights(NamedTuple):
    """Weights of one fusion block."""

    attention: AttentionWeights
    context: ContextWeights
    feed_forward: FeedForwardWeights


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

    def cast(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.to(dtype) for tensor in tensors]

    return HierarchicalWeights(
        tuple(EdgeTransform._make([*group[:2], *cast(group[2:6]), *group[6:]]) for group in w.transforms),
        tuple(
            BlockWeights(
                AttentionWeights(*narrow_products(block.attention, dtype)),
                ContextWeights(*narrow_products(block.context, dtype)),
                FeedForwardWeights(*narrow_products(block.feed_forward, dtype)),
            )
            for block in w.blocks
        ),
        QueryWeights(*cast(w.query)),
        tuple(PairWeights(*group[:2], *cast(group[2:])) for group in w.interactions),
        CalibrationWeights(*cast(w.calibration)),
        OutputWeights(*cast(w.output)),
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
