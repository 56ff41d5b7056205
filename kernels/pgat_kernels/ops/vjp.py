"""Forward passes that return their own backward pass, for operators that recompute.

Every function returns its result and a function from the gradient of the result to the gradients of its arguments, in
their order. Only that function holds the intermediate results of the backward pass: a caller that drops it frees them.
All are plain tensor functions without autograd, so that an operator can call them below autograd, and a compiler can
fuse them.

Matrix products are computed in the dtype of their weights; sums, normalisations and softmaxes in that of the
activations (float32 or float64).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgat_kernels.ops.chunked_ops import Masks

aten = torch.ops.aten


ThreeGradients = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ThreeGradients]:
    """Compute x W' + b: [M, D], [E, D], [E] -> [M, E].

    The result and the gradient of x have the dtype of W, the gradients of W and b at least float32.
    """
    cast_x = x.to(weight.dtype)
    acc_dtype = torch.promote_types(weight.dtype, torch.float32)
    y = torch.addmm(bias.to(weight.dtype), cast_x, weight.t())

    def backward(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g_bias = g.sum(dim=0, dtype=acc_dtype)
        g = g.to(weight.dtype)
        return g @ weight, (g.t() @ cast_x).to(acc_dtype), g_bias

    return y, backward


def gelu(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Compute the exact gelu, elementwise."""

    def backward(g: Tensor) -> Tensor:
        return aten.gelu_backward(g.to(x.dtype), x)  # type: ignore[no-any-return]

    return aten.gelu(x), backward


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """Apply LayerNorm over the last dimension, eps 1e-5: [M, D] -> [M, D]."""
    shape = [x.shape[-1]]
    y, mean, rstd = aten.native_layer_norm(x, shape, weight, bias, 1e-5)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return aten.native_layer_norm_backward(g, x, shape, mean, rstd, weight, bias, [True, True, True])  # type: ignore[no-any-return]

    return y, backward


def _softmax_and_drop(scores: Tensor, keep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    p = aten._softmax(scores.to(keep.dtype), -1, False)
    return (p * keep).to(dtype), p


def _softmax_and_drop_backward(g: Tensor, p: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    return aten._softmax_backward_data(g.to(p.dtype) * keep, p, -1, p.dtype).to(dtype)  # type: ignore[no-any-return]


def softmax_dropout(
    scores: Tensor, dtype: torch.dtype, masks: Masks, site: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Compute softmax over the last dimension and drop elements, but do NOT scale up (the caller scales less data).

    `scores` may have any dtype; the result and the gradient of `scores` are in `dtype`, sums are at least float32.
    """
    acc_dtype = torch.promote_types(scores.dtype, torch.float32)
    if masks.rate == 0:
        p = aten._softmax(scores.to(acc_dtype), -1, False)
        return p.to(dtype), lambda g: aten._softmax_backward_data(g.to(acc_dtype), p, -1, acc_dtype).to(dtype)
    keep = masks.keep(site, scores)
    dropped, p = masks.run(_softmax_and_drop, scores, keep.to(acc_dtype), dtype)
    return dropped, lambda g: masks.run(_softmax_and_drop_backward, g, p, keep.to(acc_dtype), dtype)


def _gelu_and_drop(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    return aten.gelu(x).mul_(keep).mul_(scale)  # type: ignore[no-any-return]


def _gelu_and_drop_backward(g: Tensor, x: Tensor, keep: Tensor, scale: float) -> Tensor:
    return aten.gelu_backward((g.to(x.dtype) * keep).mul_(scale), x)  # type: ignore[no-any-return]


def gelu_dropout(x: Tensor, masks: Masks, site: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Compute the exact gelu followed by dropout, elementwise."""
    if masks.rate == 0:
        return gelu(x)
    keep = masks.keep(site, x)
    y = masks.run(_gelu_and_drop, x, keep.to(x.dtype), masks.scale)
    return y, lambda g: masks.run(_gelu_and_drop_backward, g, x, keep.to(x.dtype), masks.scale)


def _drop_and_norm(
    t: Tensor, y: Tensor, weight: Tensor, bias: Tensor, keep: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = torch.addcmul(t, y.to(t.dtype), keep, value=scale)
    return *aten.native_layer_norm(total, [t.shape[-1]], weight, bias, 1e-5), total


def _drop_and_norm_backward(
    g: Tensor, total: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, keep: Tensor, dtype: torch.dtype, scale: float
) -> tuple[Tensor, ...]:
    """Compute gradients of t, y (in `dtype`), weight and bias."""
    g_total, g_weight, g_bias = aten.native_layer_norm_backward(
        g, total, [total.shape[-1]], mean, rstd, weight, weight, [True, True, True]
    )
    return g_total, (g_total * keep).mul_(scale).to(dtype), g_weight, g_bias


FourGradients = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def dropout_add_norm(
    t: Tensor, y: Tensor, weight: Tensor, bias: Tensor, masks: Masks, site: int
) -> tuple[Tensor, FourGradients]:
    """Compute LayerNorm(t + dropout(y)), eps 1e-5: [G, T, D] -> [G, T, D].

    y may be [G, 1, D], the same for all tokens of a group. The gradient of y is [G, T, D], in the dtype of y.
    """
    if masks.rate == 0:
        result, norm_back = layer_norm(t + y, weight, bias)

        def undropped(g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            g_total, g_weight, g_bias = norm_back(g)
            return g_total, g_total.to(y.dtype), g_weight, g_bias

        return result, undropped
    keep, dtype = masks.keep(site, t), y.dtype
    result, mean, rstd, total = masks.run(_drop_and_norm, t, y, weight, bias, keep.to(t.dtype), masks.scale)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return masks.run(  # type: ignore[no-any-return]
            _drop_and_norm_backward, g, total, mean, rstd, weight, keep.to(g.dtype), dtype, masks.scale
        )

    return result, backward


# --- blocks -----------------------------------------------------------------------------------------------------------


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

    def narrow(self, dtype: torch.dtype) -> "AttentionWeights":
        """Return the weights with those of products in `dtype`."""
        return type(self)._make([tensor.to(dtype) for tensor in self[:4]] + list(self[4:]))


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

    def narrow(self, dtype: torch.dtype) -> "FeedForwardWeights":
        """Return the weights with those of products in `dtype`."""
        return type(self)._make([tensor.to(dtype) for tensor in self[:4]] + list(self[4:]))


class OutputWeights(NamedTuple):
    """Weights of the map from a token to its edge weight: D -> E -> 1."""

    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor


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
    groups, n_heads, tokens, head = shape
    acc_dtype = torch.promote_types(qkv.dtype, torch.float32)
    masks = masks._replace(first_row=masks.first_row * (n_heads * tokens))

    def to_heads(x: Tensor, parts: int) -> Tensor:  # [G T, parts D] -> [parts, G H, T, d]
        x = x.view(groups, tokens, parts, n_heads, head).permute(2, 0, 3, 1, 4)
        return x.reshape(parts, groups * n_heads, tokens, head)

    q, k, v = to_heads(qkv, 3).unbind(0)
    scores = torch.bmm(q, k.transpose(1, 2))
    if bias is not None:
        scores = scores.view(groups, n_heads, tokens, tokens).to(acc_dtype) + bias[:, None]
    rows, softmax_back = softmax_dropout(scores.view(-1, tokens), q.dtype, masks, site)
    p = rows.view(groups * n_heads, tokens, tokens)
    o = (torch.bmm(p, v) * masks.scale).view(groups, n_heads, tokens, head)

    def backward(g: Tensor) -> tuple[Tensor, Tensor | None]:
        g_heads = to_heads(g.to(v.dtype) * masks.scale, 1)[0]
        g_v = torch.bmm(p.transpose(1, 2), g_heads)
        g_scores = softmax_back(torch.bmm(g_heads, v.transpose(1, 2)).view(-1, tokens))
        g_bias = None if bias is None else g_scores.to(acc_dtype).view(groups, n_heads, tokens, tokens).sum(dim=1)
        g_scores = g_scores.view(groups * n_heads, tokens, tokens)
        g_q = torch.bmm(g_scores, k)
        g_k = torch.bmm(g_scores.transpose(1, 2), q)
        g_qkv = torch.stack((g_q, g_k, g_v)).view(3, groups, n_heads, tokens, head).permute(1, 3, 0, 2, 4)
        return g_qkv.reshape(groups * tokens, -1), g_bias

    return o.transpose(1, 2).reshape(groups * tokens, -1), backward


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


def mlp(
    x: Tensor, weights: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, list[Tensor]]]]:
    """Apply linear layers with gelu between them: [M, A] -> [M, Z]. Gradients of the weights are one list."""
    backs: list[Callable[..., Any]] = []
    for i, (weight, bias) in enumerate(weights):
        if i > 0:
            x, back = gelu(x)
            backs.append(back)
        x, linear_back = linear(x, weight, bias)
        backs.append(linear_back)

    def backward(g: Tensor) -> tuple[Tensor, list[Tensor]]:
        grads: list[Tensor] = []
        for i, back in enumerate(reversed(backs)):
            if i % 2:
                g = back(g)
            else:
                g, g_weight, g_bias = back(g)
                grads = [g_weight, g_bias, *grads]
        return g, grads

    return x, backward


def sigmoid(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Compute the sigmoid in `dtype` (at least float32)."""
    y = torch.sigmoid(x.to(dtype))
    return y, lambda g: g * y * (1 - y)


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
