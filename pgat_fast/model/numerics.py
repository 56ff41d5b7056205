"""What stays in float32 whatever the precision of the products (section 14 of the architecture)."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gate(logits: Tensor) -> Tensor:
    """Sigmoid of `logits`, at least float32."""
    return torch.sigmoid(at_least_float32(logits))
