"""What stays in float32 whatever the precision of the products (section 14 of docs/model.md)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pgat_kernels.torch_features import has_autocast


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gate(logits: Tensor) -> Tensor:
    """Sigmoid of `logits`, at least float32."""
    return torch.sigmoid(at_least_float32(logits))


def beyond_float16(x: Tensor) -> AbstractContextManager[None]:
    """Where products of numbers above 65,504 are taken, on the device of `x`: mixed precision in float16 pauses here.

    bfloat16 reaches as far as float32 and goes on.
    """
    kind = x.device.type
    available = has_autocast(kind)  # not on the meta device
    if available and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        return torch.autocast(kind, enabled=False)
    return nullcontext()
