"""Parts of the hierarchical combiner besides its transformer blocks, with their backward passes (rewrites 2 and 5).

See `pgat_kernels.ops.vjp` for their form.

- Attention of the tokens to their context, where every key is the same vector, is the value path of that vector,
  computed once per timestep (derived in `uniform_attention`, which also draws its dropout if requested).
- Attention of the context, one query per timestep, to the three kinds of an edge applies the key projection to the
  query and the value projection after the weighted sum (derived in `query_attention`).
- W [y; context] = W_y y + W_c context, whose second part is one product per timestep.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.uniform_attention import uniform_attention
from pgat_kernels.ops.vjp import dropout_add_norm, gelu, linear, mlp, sigmoid


class ContextWeights(NamedTuple):
    """Weights of the attention to the context, with residual and LayerNorm."""

    value: Tensor
    value_bias: Tensor
    outer: Tensor
    outer_bias: Tensor
    norm: Tensor
    norm_bias: Tensor


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


def context_block(
    t: Tensor, context: Tensor, w: ContextWeights, masks: Masks, site: int, keys: int, dropped_heads: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, ContextWeights]]]:
    """Compute LayerNorm(t + dropout(attention to the context)): [M, T, D], [M, D] -> [M, T, D].

    For `keys`, `dropped_heads` and `site` + 1, the site of the attention's dropout, see `uniform_attention`.
    """
    o, attention_back = uniform_attention(context, *w[:4], t.shape[1], keys, dropped_heads, masks, site + 1)
    result, norm_back = dropout_add_norm(t, o, w.norm, w.norm_bias, masks, site)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, ContextWeights]:
        g_sum, g_o, g_norm, g_norm_bias = norm_back(g)
        g_context, g_value, g_value_bias, g_outer, g_outer_bias = attention_back(g_o)
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
