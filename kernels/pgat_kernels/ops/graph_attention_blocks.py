"""Adjacency-masked graph attention blocks over the nodes of a timestep, recomputed in chunks (rewrite 7)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pgat_kernels.ops.blocks import attention_block, feed_forward_block
from pgat_kernels.ops.chunked_ops import RowsOperator
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.plain_blocks import AttentionWeights, FeedForwardWeights, narrow_products
from pgat_kernels.ops.registration import Backward

HIDDEN = -1e30
"""Number added to the score of a hidden key. It is finite, so that a row without any key is not NaN."""

SITES = 4
"""Number of dropout sites of a block."""
_BLOCK = 12
"""Number of weights of a block, not counting its adjacency scale."""


def _blocks(weights: list[Tensor], options: Sequence[int]) -> list[list[Tensor]]:
    size = _BLOCK + options[1]
    return [weights[start : start + size] for start in range(0, len(weights), size)]


def _program(
    rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
) -> tuple[Tensor, Backward]:
    x, adjacency, hidden = rows[0], rows[1], rows[2].detach()
    n_heads, biased, kernels = options
    backs = []
    for layer, w in enumerate(_blocks(weights, options)):
        bias = hidden + w[_BLOCK] * adjacency if biased else hidden
        x, attention_back = attention_block(
            x, AttentionWeights(*w[:6]), n_heads, masks, SITES * layer, bias, kernels=kernels
        )
        x, back = feed_forward_block(x, FeedForwardWeights(*w[6:_BLOCK]), masks, SITES * layer + 2, kernels=kernels)
        backs.append((w, attention_back, back))

    def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        g_adjacency = torch.zeros_like(adjacency)
        grads: list[Tensor] = []
        for w, attention_back, back in reversed(backs):
            g, g_feed_forward = back(g)
            g, g_attention, g_bias = attention_back(g)
            layer_grads = [*g_attention, *g_feed_forward]
            if biased:
                assert g_bias is not None
                g_adjacency = g_adjacency + w[_BLOCK] * g_bias
                layer_grads.append((g_bias * adjacency).sum().reshape(1))
            grads = [*layer_grads, *grads]
        return [g, g_adjacency, torch.zeros_like(hidden)], grads

    return x, backward


def _narrow(weights: list[Tensor], dtype: torch.dtype, options: Sequence[int]) -> list[Tensor]:
    """Return the weights with those of products in `dtype`."""
    return [
        tensor
        for w in _blocks(weights, options)
        for tensor in (
            *narrow_products(w[:6], dtype),
            *narrow_products(w[6:_BLOCK], dtype),
            *w[_BLOCK:],
        )
    ]


def numbers_a_timestep(nodes: int, width: int) -> int:
    """Return the size of the largest intermediate result of a timestep: queries, keys and values."""
    return nodes * 3 * width


graph_attention_blocks = RowsOperator(
    "graph_attention_blocks", _program, lambda rows: torch.empty_like(rows[0]), _narrow
)
"""Operator for blocks over M graphs: rows [nodes [M, N, D], adjacency [M, N, N], hidden [M, N, N] (0 or `HIDDEN`)],
weights of each block (`AttentionWeights`, `FeedForwardWeights`, and, if options[1] is 1, the scale of the adjacency in
the scores, [1]), options [n_heads, scaled (0 or 1), one of `Kernels`] -> nodes [M, N, D]. `hidden` has no gradient.
Section 8b of docs/model.md."""
