"""Assertion that the results of operators are exact up to rounding."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgat_kernels.conditioning import ROUNDINGS, errors_and_bounds


def assert_right_up_to_rounding(
    found: Sequence[Tensor],
    exact: Sequence[Tensor],
    plain: Callable[[list[Tensor]], list[Tensor]],
    inputs: list[Tensor],
    dtype: torch.dtype,
    roundings: float = ROUNDINGS,
) -> None:
    """Assert that the error of every result is within its bound. The arguments are those of `errors_and_bounds`."""
    errors_with_bounds = errors_and_bounds(found, exact, plain, inputs, dtype, roundings)
    failures = [
        f"result {index}, {tuple(truth.shape)}: off by {error:.2g}, where rounding explains {bound:.2g}"
        for index, ((error, bound), truth) in enumerate(zip(errors_with_bounds, exact, strict=True))
        if not error <= bound
    ]
    assert not failures, "\n".join(failures)
