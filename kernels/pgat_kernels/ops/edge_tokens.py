"""Maps from edge values to tokens, one map per kind of edge: LayerNorm(W3 gelu(W2 gelu(W1 x)))."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pgat_kernels.dispatch import Kernels, wanted
from pgat_kernels.ops.block_operators import MOST_WIDTH, BlockOperator, KernelBackward, KernelForward
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.registration import Backward
from pgat_kernels.ops.vjp import layer_norm, mlp


class EdgeTransform(NamedTuple):
    """Weights of the map from an edge value to its token: 1 -> A -> B -> D, LayerNorm."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    third: Tensor
    third_bias: Tensor
    norm: Tensor
    norm_bias: Tensor


def _plain_edge_tokens(
    values: Tensor, transforms: Sequence[EdgeTransform]
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, tuple[EdgeTransform, ...]]]]:
    rows, nodes = values.shape[:2]
    tokens, backs = [], []
    for kind, w in enumerate(transforms):
        x = values[..., kind].reshape(-1, 1)
        y, back = mlp(x, ((w.first, w.first_bias), (w.second, w.second_bias), (w.third, w.third_bias)))
        y, norm_back = layer_norm(y.to(values.dtype), w.norm, w.norm_bias)
        tokens.append(y.view(rows * nodes, nodes, -1))
        backs.append((back, norm_back))

    def backward(g: Tensor) -> tuple[Tensor, tuple[EdgeTransform, ...]]:
        g_values, grads = [], []
        for part, (back, norm_back) in zip(g.chunk(len(backs), dim=1), backs, strict=True):
            g_y, g_norm, g_norm_bias = norm_back(part.reshape(-1, part.shape[-1]))
            g_x, g_weights = back(g_y)
            g_values.append(g_x.to(values.dtype).view(rows, nodes, nodes))
            grads.append(EdgeTransform._make([*g_weights, g_norm, g_norm_bias]))
        return torch.stack(g_values, dim=-1), tuple(grads)

    return torch.cat(tokens, dim=1), backward


def _stacked(transforms: Sequence[EdgeTransform]) -> list[Tensor]:
    """Stack the weights of all kinds along a new first dimension."""
    return [torch.stack(list(parts)) for parts in zip(*transforms, strict=True)]


def _split(weights: Sequence[Tensor]) -> tuple[EdgeTransform, ...]:
    """Invert `_stacked`."""
    return tuple(EdgeTransform(*parts) for parts in zip(*weights, strict=True))


def _plain(rows: list[Tensor], weights: list[Tensor], masks: Masks, site: int) -> tuple[Tensor, Backward]:
    y, back = _plain_edge_tokens(rows[0], _split(weights))

    def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        g_values, grads = back(g)
        return [g_values], _stacked(grads)

    return y, backward


def _kernels() -> tuple[KernelForward, KernelBackward]:
    from pgat_kernels.triton.edge_tokens import edge_tokens_backward, edge_tokens_forward

    return edge_tokens_forward, edge_tokens_backward


edge_tokens_operator = BlockOperator(
    "edge_tokens",
    _plain,
    lambda rows, weights: rows[0].new_empty(
        (rows[0].shape[0] * rows[0].shape[1], rows[0].shape[3] * rows[0].shape[1], weights[6].shape[1])
    ),
    _kernels,
    lambda rows, weights: max(weights[0].shape[1], weights[6].shape[1]) <= MOST_WIDTH,
    product=2,
)
"""Operator: rows [values [M, N, N, kinds]], weights of `EdgeTransform` with the kinds first -> [M N, kinds N, D]."""


def edge_tokens(
    values: Tensor, transforms: Sequence[EdgeTransform], *, kernels: int = Kernels.OFF
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, tuple[EdgeTransform, ...]]]]:
    """Map edge values [M, N, N, kinds] to tokens grouped by source node: [M N, kinds N, D], and the backward pass.

    See `pgat_kernels.ops.vjp`; `kernels` is one of `pgat_kernels.dispatch.Kernels`.
    """
    if not wanted(kernels, edge_tokens_operator.name, values, max(transforms[0][2].shape), transforms[0][2].dtype):
        return _plain_edge_tokens(values, transforms)
    zero = torch.zeros((), dtype=torch.int64, device=values.device)
    y, back = edge_tokens_operator([values], _stacked(transforms), Masks(0.0, zero, zero), 0)

    def backward(g: Tensor) -> tuple[Tensor, tuple[EdgeTransform, ...]]:
        (g_values,), grads = back(g)
        return g_values, _split(grads)

    return y, backward
