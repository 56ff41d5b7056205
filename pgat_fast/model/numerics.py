"""Operations that stay in float32 at every precision of the products (section 14 of docs/model.md)."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from pgat_kernels.torch_features import has_autocast


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gate(logits: Tensor) -> Tensor:
    """Return the sigmoid of `logits`, in at least float32."""
    return torch.sigmoid(at_least_float32(logits))


def beyond_float16(x: Tensor) -> AbstractContextManager[None]:
    """Return a context that disables float16 autocast on the device of `x`, for products of numbers above 65,504.

    Autocast to bfloat16, which has the range of float32, stays enabled.
    """
    device_type = x.device.type
    available = has_autocast(device_type)  # not on the meta device
    if available and torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16:
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
