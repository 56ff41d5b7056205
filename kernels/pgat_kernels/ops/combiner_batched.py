"""Batched combiner: merges the three adjacencies of a timestep into one (rewrites 4 and 7).

Timesteps are independent, see `chunked_ops`. The first block is `low_rank_attention`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgat_kernels.dispatch import Kernels
from pgat_kernels.ops.blocks import attention_block, feed_forward_block, low_rank_attention_block, output_head
from pgat_kernels.ops.chunked_ops import RowsOperator
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.low_rank_attention import LowRankWeights
from pgat_kernels.ops.plain_blocks import AttentionWeights, FeedForwardWeights, OutputWeights, narrow_products
from pgat_kernels.ops.registration import Backward

SITES = 4
"""Number of dropout sites of a block."""


class CombinerWeights(NamedTuple):
    """Weights of the whole combiner."""

    first: LowRankWeights
    attentions: tuple[AttentionWeights, ...]
    """Attention weights of the blocks after the first."""
    feed_forwards: tuple[FeedForwardWeights, ...]
    """Feed-forward weights of all blocks."""
    output: OutputWeights

    def flat(self) -> list[Tensor]:
        """Return all weights in one list, in the order of `from_flat`."""
        groups = (self.first, *self.attentions, *self.feed_forwards, self.output)
        return [tensor for group in groups for tensor in group]


def from_flat(tensors: list[Tensor]) -> CombinerWeights:
    """Return the weights whose `CombinerWeights.flat` is `tensors`."""
    remaining = iter(tensors)

    def take(count: int) -> list[Tensor]:
        return [next(remaining) for _ in range(count)]

    layers = (len(tensors) - 6 - 4 + 6) // 12
    first = LowRankWeights(*take(6))
    attentions = tuple(AttentionWeights(*take(6)) for _ in range(layers - 1))
    feed_forwards = tuple(FeedForwardWeights(*take(6)) for _ in range(layers))
    return CombinerWeights(first, attentions, feed_forwards, OutputWeights(*take(4)))


def combine(
    a: Tensor, w: CombinerWeights, n_heads: int, masks: Masks, kernels: int = Kernels.OFF
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, CombinerWeights]]]:
    """Merge the three values of each edge of G timesteps: [G, T, 3] -> [G, T] in (-1, 1), and the backward pass."""
    t, first_back = low_rank_attention_block(a, w.first, masks, 0, kernels=kernels)
    t, back = feed_forward_block(t, w.feed_forwards[0], masks, 2, kernels=kernels)
    feed_forward_backs, attention_backs = [back], []
    for layer, (attention, feed_forward) in enumerate(zip(w.attentions, w.feed_forwards[1:], strict=True), 1):
        t, attention_back = attention_block(t, attention, n_heads, masks, SITES * layer, kernels=kernels)
        t, back = feed_forward_block(t, feed_forward, masks, SITES * layer + 2, kernels=kernels)
        attention_backs.append(attention_back)
        feed_forward_backs.append(back)
    y, output_back = output_head(t, w.output, masks, SITES * len(w.feed_forwards), kernels=kernels)

    def backward(g: Tensor) -> tuple[Tensor, CombinerWeights]:
        g_t, output = output_back(g)
        g_attentions: list[AttentionWeights] = []
        g_feed_forwards: list[FeedForwardWeights] = []
        for feed_forward_back, attention_back in zip(feed_forward_backs[:0:-1], attention_backs[::-1], strict=True):
            g_t, grads = feed_forward_back(g_t)
            g_feed_forwards.insert(0, grads)
            g_t, g_attention, _ = attention_back(g_t)
            g_attentions.insert(0, g_attention)
        g_t, grads = feed_forward_backs[0](g_t)
        g_feed_forwards.insert(0, grads)
        g_a, g_first = first_back(g_t)
        return g_a, CombinerWeights(g_first, tuple(g_attentions), tuple(g_feed_forwards), output)

    return y, backward


# --- the operator -----------------------------------------------------------------------------------------------------


def numbers_a_timestep(tokens: int, n_heads: int) -> int:
    """Return the size of the largest intermediate result of a timestep: the scores of all heads."""
    return n_heads * tokens * tokens


def _narrow(weights: list[Tensor], dtype: torch.dtype, options: Sequence[int]) -> list[Tensor]:
    """Return the weights with those of products after the first attention in `dtype`."""
    w = from_flat(weights)
    return CombinerWeights(
        w.first,
        tuple(AttentionWeights(*narrow_products(group, dtype)) for group in w.attentions),
        tuple(FeedForwardWeights(*narrow_products(group, dtype)) for group in w.feed_forwards),
        OutputWeights(*(tensor.to(dtype) for tensor in w.output)),
    ).flat()


def _program(
    rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
) -> tuple[Tensor, Backward]:
    y, back = combine(rows[0], from_flat(weights), options[0], masks, options[1])

    def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        g_edges, grads = back(g)
        return [g_edges], grads.flat()

    return y, backward


batched_combiner = RowsOperator(
    "batched_combiner", _program, lambda rows: rows[0].new_empty(rows[0].shape[:2]), _narrow
)
"""Operator that merges the adjacencies of M timesteps: rows [edges [M, T, 3]], weights `CombinerWeights.flat()`,
options [n_heads, one of `Kernels`] -> [M, T] in (-1, 1). Sections 6a and 13 of docs/model.md."""
