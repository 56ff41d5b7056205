"""Results and gradients of a function of tensors, to compare two implementations."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

EXACT = 1e-10
"""Tolerance of results in float64, of magnitude 1."""
Call = Callable[..., Tensor]


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normal random numbers, the same in every dtype up to rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def results(call: Call, values: Sequence[Tensor], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return the output for `values` in `dtype`, and the gradients of all of them."""
    inputs = [value.detach().to(dtype).requires_grad_() for value in values]
    output = call(*inputs)
    upstream = normal(*output.shape, seed=30, dtype=output.dtype)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream)]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = EXACT) -> None:
    """Assert that shapes are equal and elements differ by at most `tolerance`."""
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=0, atol=tolerance)


def flat(tree: Any) -> list[Tensor]:
    """Return the tensors in nested sequences."""
    if isinstance(tree, Tensor):
        return [tree]
    return [] if tree is None else [tensor for part in tree for tensor in flat(part)]
