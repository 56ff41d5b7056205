"""Arguments of graph attention, which its operator, its plain torch version and its kernels share."""

from typing import NamedTuple

import torch
from torch import Tensor

from pgat_kernels.ops.dropout import Dropout


class GraphInputs(NamedTuple):
    """Checked arguments of `pgat_kernels.ops.graph_attention.graph_attention`."""

    q: Tensor
    """[G, H, T, d], columns contiguous."""
    k: Tensor
    v: Tensor
    adjacency: Tensor | None
    """[G, T, T], contiguous."""
    bias: Tensor | None
    """[G, T, T], contiguous, at least float32."""
    dropout: Dropout
    threshold: float
    scale: float


def empty_like_rows(q: Tensor) -> Tensor:
    """Return an empty tensor [G, H, T, d] laid out as [G, T, H, d], which an output projection reads without a copy."""
    graphs, heads, nodes, depth = q.shape
    return torch.empty((graphs, nodes, heads, depth), dtype=q.dtype, device=q.device).transpose(1, 2)


def product_flops(shape: tuple[int, ...]) -> int:
    """Return the FLOPs of one matrix product of the size of the scores, for q of this shape [G, H, T, d]."""
    graphs, heads, nodes, depth = shape
    return 2 * graphs * heads * nodes * nodes * depth
