"""Layers of G networks of one kind, computed by batched products instead of G small ones (rewrite 6)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def pad_and_stack(tensors: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Zero-pad tensors of one dtype and different sizes and stack them to one tensor [G, *shape].

    Raises:
        ValueError: if a tensor is larger than `shape` or has another number of dimensions.
    """
    for tensor in tensors:
        if tensor.dim() != len(shape) or any(extent > size for extent, size in zip(tensor.shape, shape, strict=True)):
            raise ValueError(f"a tensor {list(tensor.shape)} cannot be padded to {list(shape)}")

    def padded(tensor: Tensor) -> Tensor:
        missing = [size - extent for extent, size in zip(tensor.shape, shape, strict=True)]
        return F.pad(tensor, [end for size in reversed(missing) for end in (0, size)]) if any(missing) else tensor

    return torch.stack([padded(tensor) for tensor in tensors])


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply G linear layers, each to its own input: y_g = x_g W_g' + b_g.

    Args:
        x: [G, M, I], float; any strides.
        weight: [G, O, I].
        bias: [G, O].

    Returns:
        [G, M, O].

    Raises:
        RuntimeError: if sizes or dtypes do not match.
    """
    return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))


def grouped_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Apply G LayerNorms (Ba, Kiros & Hinton 2016) over the last dimension, in at least float32.

    Args:
        x: [G, M, C], float.
        weight, bias: [G, C].
        eps: added to the variance.

    Returns:
        [G, M, C] in the wider of float32 and the dtype of `x`.
    """
    cast_x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.addcmul(bias[:, None], F.layer_norm(cast_x, x.shape[-1:], eps=eps), weight[:, None])
