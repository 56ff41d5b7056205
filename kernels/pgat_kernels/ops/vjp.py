"""Forward passes that return their own backward pass, for operators that recompute.

Every function returns its result and a function from the gradient of the result to the gradients of its arguments, in
their order. Only that function holds the intermediate results of the backward pass: a caller that drops it frees them.
All are plain tensor functions without autograd, so that an operator can call them below autograd, and a compiler can
fuse them.

Matrix products are computed in the dtype of their weights; sums, normalisations and softmaxes in that of the
activations (float32 or float64).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pgat_kernels.ops.dropout_masks import Masks

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
        return aten.gelu_backward(g.to(x.dtype), x)

    return aten.gelu(x), backward


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """Apply LayerNorm over the last dimension, eps 1e-5: [M, D] -> [M, D]."""
    shape = [x.shape[-1]]
    y, mean, rstd = aten.native_layer_norm(x, shape, weight, bias, 1e-5)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return aten.native_layer_norm_backward(g, x, shape, mean, rstd, weight, bias, [True, True, True])

    return y, backward


def _softmax_and_drop(scores: Tensor, keep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    p = aten._softmax(scores.to(keep.dtype), -1, False)
    return (p * keep).to(dtype), p


def _softmax_and_drop_backward(g: Tensor, p: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    return aten._softmax_backward_data(g.to(p.dtype) * keep, p, -1, p.dtype).to(dtype)


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
    return aten.gelu(x).mul_(keep).mul_(scale)


def _gelu_and_drop_backward(g: Tensor, x: Tensor, keep: Tensor, scale: float) -> Tensor:
    return aten.gelu_backward((g.to(x.dtype) * keep).mul_(scale), x)


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
        return masks.run(_drop_and_norm_backward, g, total, mean, rstd, weight, keep.to(g.dtype), dtype, masks.scale)

    return result, backward


def split_heads(x: Tensor, groups: int, parts: int, n_heads: int) -> Tensor:
    """Split heads: [G T, parts D] -> [parts, G, H, T, d], contiguous."""
    return x.view(groups, -1, parts, n_heads, x.shape[-1] // (parts * n_heads)).permute(2, 0, 3, 1, 4).contiguous()


def merge_heads(*parts: Tensor) -> Tensor:
    """Merge heads of tensors [G, H, T, d] -> [G T, parts D]."""
    x = torch.stack(parts) if len(parts) > 1 else parts[0][None]  # [parts, G, H, T, d]
    return x.permute(1, 3, 0, 2, 4).reshape(x.shape[1] * x.shape[3], -1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, masks: Masks, site: int
) -> tuple[Callable[[], Tensor], Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor | None]]]:
    """Compute attention with dropout of its weights, from scaled queries: [G, H, Q, d], [G, H, T, d] -> [G, H, Q, d].

    Returns a function that computes the result, which a recomputed backward pass does not need, and the backward pass.

    Args:
        q, k, v: contiguous, in the dtype of the products.
        bias: [G, Q, T], added to the scores of all heads; its gradient is the last one.
        masks, site: of the dropout; the rows of the mask are the queries of all heads.
    """
    groups, heads, queries, depth = q.shape
    keys = k.shape[2]
    acc_dtype = torch.promote_types(q.dtype, torch.float32)
    q3, k3, v3 = (x.reshape(groups * heads, -1, depth) for x in (q, k, v))
    scores = torch.bmm(q3, k3.transpose(1, 2)).view(groups, heads, queries, keys)
    if bias is not None:
        scores = scores.to(acc_dtype) + bias[:, None]
    rows, softmax_back = softmax_dropout(scores.view(-1, keys), q.dtype, masks, site)
    p = rows.view(groups * heads, queries, keys)

    def forward() -> Tensor:
        return (torch.bmm(p, v3) * masks.scale).view_as(q)

    def backward(g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        g3 = g.reshape(groups * heads, queries, depth) * masks.scale
        g_v = torch.bmm(p.transpose(1, 2), g3)
        g_scores = softmax_back(torch.bmm(g3, v3.transpose(1, 2)).view(-1, keys))
        g_bias = None if bias is None else g_scores.to(acc_dtype).view(groups, heads, queries, keys).sum(dim=1)
        flat = g_scores.view(groups * heads, queries, keys)
        g_q, g_k = torch.bmm(flat, k3), torch.bmm(flat.transpose(1, 2), q3)
        return g_q.view_as(q), g_k.view_as(k), g_v.view_as(v), g_bias

    return forward, backward


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
