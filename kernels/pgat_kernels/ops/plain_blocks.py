"""Transformer blocks in plain torch, as forward passes that return their backward pass, see `pgat_kernels.ops.vjp`.

`pgat_kernels.ops.blocks` computes the same blocks by kernels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.vjp import attend, dropout_add_norm, gelu_dropout, linear, merge_heads, split_heads


class AttentionWeights(NamedTuple):
    """Weights of self-attention with residual and LayerNorm; the query rows of `inner` include 1 / sqrt(d)."""

    inner: Tensor
    """[3 D, D], for queries, keys and values."""
    inner_bias: Tensor
    outer: Tensor
    """[D, D]"""
    outer_bias: Tensor
    norm: Tensor
    norm_bias: Tensor


class FeedForwardWeights(NamedTuple):
    """Weights of a feed-forward block with residual and LayerNorm."""

    inner: Tensor
    """[F, D]"""
    inner_bias: Tensor
    outer: Tensor
    """[D, F]"""
    outer_bias: Tensor
    norm: Tensor
    norm_bias: Tensor


class OutputWeights(NamedTuple):
    """Weights of the map from a token to its edge weight: D -> E -> 1."""

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor


def narrow_products(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the six weights of a block with those of its two products, the first four, in `dtype`."""
    return [*(tensor.to(dtype) for tensor in weights[:4]), *weights[4:]]


def self_attention(
    qkv: Tensor, shape: tuple[int, int, int, int], bias: Tensor | None, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor | None]]]:
    """Compute attention of all heads with dropout of its weights: projections [G T, 3 D] -> [G T, D].

    Args:
        qkv: queries, keys and values side by side.
        shape: G, H, T, d.
        bias: [G, T, T], added to the scores of all heads; its gradient is returned last.
        masks, site: of the dropout; the rows of its mask are the queries of all heads.
    """
    groups, n_heads, tokens, _ = shape
    masks = masks._replace(first_row=masks.first_row * (n_heads * tokens))
    q, k, v = split_heads(qkv, groups, 3, n_heads).unbind(0)
    forward, attend_back = attend(q, k, v, bias, masks, site)

    def backward(g: Tensor) -> tuple[Tensor, Tensor | None]:
        g_q, g_k, g_v, g_bias = attend_back(split_heads(g.to(v.dtype), groups, 1, n_heads)[0])
        return merge_heads(g_q, g_k, g_v), g_bias

    return merge_heads(forward()), backward


def attention_block(
    t: Tensor,
    w: AttentionWeights,
    n_heads: int,
    masks: Masks,
    site: int,
    bias: Tensor | None = None,
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, AttentionWeights, Tensor | None]]]:
    """Compute LayerNorm(t + dropout(MHA(t))) within groups of T tokens: [G, T, D] -> [G, T, D].

    `bias` [G, T, T] is added to the scores of all heads; its gradient is returned last. Uses the dropout sites `site`
    and `site` + 1.
    """
    groups, tokens, width = t.shape
    head = width // n_heads
    flat = t.reshape(groups * tokens, width)
    qkv, inner_back = linear(flat, w.inner, w.inner_bias)
    o, attend_back = self_attention(qkv, (groups, n_heads, tokens, head), bias, masks, site)
    y, outer_back = linear(o, w.outer, w.outer_bias)
    result, norm_back = dropout_add_norm(t, y.view(groups, tokens, width), w.norm, w.norm_bias, masks, site + 1)

    def backward(g: Tensor) -> tuple[Tensor, AttentionWeights, Tensor | None]:
        g_sum, g_y, g_norm, g_norm_bias = norm_back(g)
        g_o, g_outer, g_outer_bias = outer_back(g_y.view(groups * tokens, width))
        g_qkv, g_bias = attend_back(g_o)
        g_flat, g_inner, g_inner_bias = inner_back(g_qkv)
        grads = AttentionWeights(g_inner, g_inner_bias, g_outer, g_outer_bias, g_norm, g_norm_bias)
        return g_sum + g_flat.view_as(t), grads, g_bias

    return result, backward


def feed_forward_block(
    t: Tensor, w: FeedForwardWeights, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, FeedForwardWeights]]]:
    """Compute LayerNorm(t + dropout(W2 dropout(gelu(W1 t)))): [G, T, D] -> [G, T, D].

    Uses the dropout sites `site` and `site` + 1.
    """
    groups, tokens, width = t.shape
    h, inner_back = linear(t.reshape(groups * tokens, width), w.inner, w.inner_bias)
    a, gelu_back = gelu_dropout(h.view(groups, tokens, -1), masks, site)
    y, outer_back = linear(a.view(groups * tokens, -1), w.outer, w.outer_bias)
    result, norm_back = dropout_add_norm(t, y.view(groups, tokens, width), w.norm, w.norm_bias, masks, site + 1)

    def backward(g: Tensor) -> tuple[Tensor, FeedForwardWeights]:
        g_sum, g_y, g_norm, g_norm_bias = norm_back(g)
        g_a, g_outer, g_outer_bias = outer_back(g_y.view(groups * tokens, width))
        g_h = gelu_back(g_a.view(groups, tokens, -1))
        g_flat, g_inner, g_inner_bias = inner_back(g_h.view(groups * tokens, -1))
        grads = FeedForwardWeights(g_inner, g_inner_bias, g_outer, g_outer_bias, g_norm, g_norm_bias)
        return g_sum + g_flat.view_as(t), grads

    return result, backward


def output_head(
    t: Tensor, w: OutputWeights, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, OutputWeights]]]:
    """Compute tanh(W2 dropout(gelu(W1 t))): [G, T, D] -> [G, T] in (-1, 1)."""
    groups, tokens, width = t.shape
    h, inner_back = linear(t.reshape(groups * tokens, width), w.inner, w.inner_bias)
    h, gelu_back = gelu_dropout(h.view(groups, tokens, -1), masks, site)
    logits, outer_back = linear(h.view(groups * tokens, -1), w.outer, w.outer_bias)
    y = torch.tanh(logits.to(t.dtype)).view(groups, tokens)

    def backward(g: Tensor) -> tuple[Tensor, OutputWeights]:
        g_h, g_outer, g_outer_bias = outer_back((g * (1 - y * y)).view(groups * tokens, 1))
        g_h = gelu_back(g_h.view(groups, tokens, -1))
        g_t, g_inner, g_inner_bias = inner_back(g_h.view(groups * tokens, -1))
        return g_t.to(t.dtype).view_as(t), OutputWeights(g_inner, g_inner_bias, g_outer, g_outer_bias)

    return y, backward
