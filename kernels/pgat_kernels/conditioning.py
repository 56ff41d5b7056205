"""Error bounds for floating-point results, from the measured conditioning of the inputs.

Two correct programs for one function differ by rounding, and how much of it reaches a result depends on the inputs: the
gradient of a division by a sum near zero can lose five of the seven digits of float32. A test for "at most twice the
error of another program" compares two random numbers. The conditioning of the inputs gives a better bound: move every
input by one unit in the last place at random, which is indistinguishable from rounding inside the program, and measure
how far the results move.

    exact = plain_in_float64(inputs)
    plain_errors = relative_errors(plain_in_float32(inputs), exact)
    bounds = error_bounds(rounding_spread(plain_in_float32, inputs), torch.float32, plain_errors)
    assert all(error <= bound for error, bound in zip(relative_errors(kernels(inputs), exact), bounds))

Requires only torch.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

ZERO_BESIDE: Final = 1e-6
"""Smallest norm that a relative error is computed with, as a fraction of the largest norm among the results.

Some gradients are zero in exact arithmetic (the bias of keys under a softmax). Their computed values are the rounding
errors of terms as large as other gradients, a few 1e-7 of these in float32, so their own relative error is meaningless.
"""
SPREADS: Final = 8.0
"""Number of spreads by which an error may exceed that of the plain program.

A perturbed run differs from an unperturbed one by the effect of the moved inputs and by the rounding inside both runs,
so one spread is more than the rounding of one program. But where a single sum near zero dominates, an error and a
spread are each one random number times the same condition number: the worst of three draws is then less than an eighth
of another draw in about one of a thousand cases, and less than a quarter in one of a hundred. Errors of correct
programs were measured to be up to 2.3 spreads, over some thousand gradients. In a well-conditioned case, with spreads
of a few 1e-6, an error of 1e-2 in a gradient is more than a hundred times the bound.
"""
ROUNDINGS: Final = 2.0
"""Number of epsilons of the dtype that an error may have in addition.

A sum of few numbers may be exact in every draw, and still be rounded once when it is added in another order, and once
more when it is stored.
"""

MANY: Final = 100
"""Smallest number of elements for which the relative error of a result is an average over many roundings, and not a
single random draw."""

_BITS: Final = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def moved_by_rounding(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move every element by -1, 0 or +1 unit in the last place at random.

    Args:
        x: of any shape. Tensors of another dtype than float64, float32, float16 and bfloat16 are returned as they are.
        generator: draws on its own device, so that a generator on the CPU gives the same moves on every device.

    Returns:
        A new tensor of the shape, dtype, device and `requires_grad` of `x`. Zeros stay zeros, because masked and padded
        elements are not rounded. Infinite and NaN elements are unchanged, and finite elements stay finite.
    """
    if x.dtype not in _BITS:
        return x
    values = x.detach()
    steps = torch.randint(-1, 2, x.shape, generator=generator, dtype=torch.int8, device=generator.device).to(x.device)
    # Floats are stored as sign and magnitude: the next bit pattern is the next magnitude, for either sign.
    moved = (values.view(_BITS[x.dtype]) + steps).view(x.dtype)
    return torch.where((values == 0) | ~values.isfinite() | ~moved.isfinite(), values, moved).requires_grad_(
        x.requires_grad
    )


def relative_errors(results: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Compute norm(result - expected) / norm(expected) of each result, in float64.

    The denominator is at least `ZERO_BESIDE` times the largest norm among `expected`. The error is infinite if a result
    or its expected value has NaN or infinite elements, or if a result is not zero although all of `expected` is. The
    error of a tensor without elements is 0.

    Raises ValueError if the shapes or the number of tensors differ.
    """
    if len(results) != len(expected):
        raise ValueError(f"there are {len(results)} results where {len(expected)} are expected")
    for place, (result, truth) in enumerate(zip(results, expected, strict=True)):
        if result.shape != truth.shape:
            raise ValueError(f"result {place} has the shape {tuple(result.shape)}, expected {tuple(truth.shape)}")
    norms = [_norm(truth) for truth in expected]
    floor = ZERO_BESIDE * max((norm for norm in norms if norm < math.inf), default=0.0)
    errors = []
    for result, truth, norm in zip(results, expected, norms, strict=True):
        difference = _norm(result.detach().double() - truth.detach().double())
        scale = max(norm, floor)
        if difference == 0:
            errors.append(0.0)
        elif norm == math.inf or scale == 0:
            errors.append(math.inf)
        else:
            errors.append(difference / scale)
    return errors


def rounding_spread(
    compute: Callable[[list[Tensor]], list[Tensor]], inputs: list[Tensor], *, draws: int = 3, seed: int = 0
) -> list[float]:
    """Measure how far each result of `compute` moves when all its inputs move by one unit in the last place.

    Args:
        compute: maps inputs to results (outputs, gradients). It is called `draws + 1` times, must return the same
            results for the same inputs (seed the dropout inside it) and must not change its inputs.
        inputs: all tensors that may carry rounding errors: weights as well as data, in the dtype whose rounding is
            measured.
        draws: number of times the inputs are moved, at least 1.
        seed: of the random moves.

    Returns:
        For each result the largest of its relative errors against the unmoved result, computed by `relative_errors`.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    generator = torch.Generator().manual_seed(seed)
    unmoved = [result.detach().clone() for result in compute(list(inputs))]
    worst = [0.0] * len(unmoved)
    for _ in range(draws):
        moved = compute([moved_by_rounding(x, generator) for x in inputs])
        worst = [max(pair) for pair in zip(worst, relative_errors(moved, unmoved), strict=True)]
    return worst


def error_bounds(
    spread: Sequence[float], dtype: torch.dtype, plain_errors: Sequence[float] | None = None
) -> list[float]:
    """Return a bound on each relative error: that of the plain program + `SPREADS` spreads + `ROUNDINGS` epsilons.

    Args:
        spread: of the plain program, from `rounding_spread`.
        dtype: of the products; every result is subject to its rounding.
        plain_errors: of the plain program in the same dtype, against exact results; None if results are compared with
            those of the plain program itself. Not all rounding moves with the inputs: the gradient of a saturated
            sigmoid is g (1 - g), where the few digits of 1 - g stay the same however the inputs move, so that all
            programs in float32 are off by the same 1e-5 and the spread does not show it.

    Raises ValueError if a bound is not finite: any error would be within it.
    """
    bounds = []
    for place, (result_spread, plain_error) in enumerate(zip(spread, plain_errors or [0.0] * len(spread), strict=True)):
        bound = plain_error + SPREADS * result_spread + ROUNDINGS * torch.finfo(dtype).eps
        if not math.isfinite(bound):
            raise ValueError(f"result {place} of the plain program is not finite: it bounds no error")
        bounds.append(bound)
    return bounds


def errors_and_bounds(
    results: Sequence[Tensor],
    expected: Sequence[Tensor],
    plain: Callable[[list[Tensor]], list[Tensor]],
    inputs: list[Tensor],
    dtype: torch.dtype,
    roundings: float = ROUNDINGS,
) -> list[tuple[float, float]]:
    """Compute the relative error of each result of an operator, and the bound that rounding in `dtype` allows.

    In float32 and float64 the bound is that of `error_bounds`: a few 1e-6 in float32 for a well-conditioned case. In 16
    bits eight spreads are 5e-2 and would hide mistakes. Operators are therefore tested in 16 bits on well-conditioned
    inputs (products of random numbers, softmax, normalisation; no division by a sum near zero), so that the error of
    the plain program is an average over many roundings: a result of at least `MANY` elements may have twice that error.
    A result of fewer elements, whose error is a random draw, has the bound of `error_bounds` in 16 bits, too.

    Args:
        results: to be compared.
        expected: the same results in float64.
        plain: computes the same in plain torch, with products in `dtype`, from `inputs`, as in `rounding_spread`.
        inputs: all rounded tensors: data and weights, in the dtypes that `plain` takes.
        dtype: of the products.
        roundings: epsilons of `dtype` that a 16-bit result may be off by in addition.

    Raises ValueError if the plain program returns values that are not finite.
    """
    plain_errors = relative_errors(plain(inputs), expected)
    bounds = error_bounds(rounding_spread(plain, inputs), dtype, plain_errors)
    if torch.finfo(dtype).bits == 16:
        bounds = [
            2 * average + roundings * torch.finfo(dtype).eps if truth.numel() >= MANY else bound
            for average, bound, truth in zip(plain_errors, bounds, expected, strict=True)
        ]
    return list(zip(relative_errors(results, expected), bounds, strict=True))


def _norm(x: Tensor) -> float:
    """Compute the Euclidean norm in float64; infinite if an element is NaN or infinite."""
    norm = float(x.detach().double().norm())
    return norm if math.isfinite(norm) else math.inf
