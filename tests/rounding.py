"""Judge results by what rounding explains: the bounds of all tests that compare an operator with plain torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgat_kernels.conditioning import ROUNDINGS, error_bounds, relative_errors, rounding_spread

MANY = 100
"""Numbers of a result from which on its relative error is an average over many roundings, not one draw of luck."""


def assert_right_up_to_rounding(
    found: Sequence[Tensor],
    exact: Sequence[Tensor],
    plain: Callable[[list[Tensor]], list[Tensor]],
    inputs: list[Tensor],
    dtype: torch.dtype,
    roundings: float = ROUNDINGS,
) -> None:
    """Assert that results are as near to the exact ones as rounding of `dtype` lets a right program come.

    In float32 an error may be eight of the spreads of plain torch (`pgat_kernels.conditioning`): a few 1e-6 where a
    case is well conditioned. In 16 bits eight spreads are 5e-2, and would hide mistakes. There the inputs of all tests
    are well conditioned (products of random numbers, softmax, normalisation; nothing is divided by a sum near zero), so
    that the error of plain torch is an average over many roundings, and a result of `MANY` numbers may have twice that
    error; one of fewer numbers, whose error is luck, eight spreads.

    Args:
        found: results and gradients to be judged.
        exact: the same in float64.
        plain: computes the same in plain torch, with products in `dtype`, from `inputs`.
        inputs: whatever is rounded: data and weights, in the dtypes that `plain` takes.
        dtype: of the products.
        roundings: epsilons of `dtype` that are allowed beyond that.
    """
    errors = relative_errors(found, exact)
    bounds = error_bounds(rounding_spread(plain, inputs), dtype)
    if torch.finfo(dtype).bits == 16:
        averages = relative_errors(plain(inputs), exact)
        bounds = [
            2 * average + roundings * torch.finfo(dtype).eps if truth.numel() >= MANY else bound
            for average, bound, truth in zip(averages, bounds, exact, strict=True)
        ]
    wrong = [
        f"result {place}, {tuple(truth.shape)}: off by {error:.2g}, where rounding explains {bound:.2g}"
        for place, (error, bound, truth) in enumerate(zip(errors, bounds, exact, strict=True))
        if not error <= bound
    ]
    assert not wrong, "\n".join(wrong)
