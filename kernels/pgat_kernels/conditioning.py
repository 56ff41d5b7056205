"""Measure how far float results may differ by rounding alone, and bound errors by that.

Two correct programs for one function differ by rounding, and how much of it reaches a result depends on the inputs: the
gradient of a division by a sum near zero can lose five of the seven digits of float32. "At most twice the error of
another program" compares two random numbers. What the inputs say is their condition: move every input by one unit in
the last place at random, which no program can tell from its own rounding, and see how far the results move.

    exact = plain_in_float64(inputs)
    plain_errors = relative_errors(plain_in_float32(inputs), exact)
    bounds = error_bounds(rounding_spread(plain_in_float32, inputs), torch.float32, plain_errors)
    assert all(error <= bound for error, bound in zip(relative_errors(kernels(inputs), exact), bounds))

Needs torch alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

ZERO_BESIDE: Final = 1e-6
"""A result is judged as if its norm were at least this much of the largest norm among the results.

Some gradients are zero in exact arithmetic (the bias of keys under a softmax). What is computed for them is the
rounding of terms as large as other gradients, a few 1e-7 of these in float32, which has no relative error of its own.
"""
SPREADS: Final = 8.0
"""How many spreads an error may exceed that of the plain program by.

A moved run differs from an unmoved one by what the moved inputs do and by the rounding inside both runs, so one spread
is more than the rounding of one program. But where a single sum near zero decides everything, an error and a spread are
each one random number times the same condition: the worst of three draws is then less than an eighth of another draw
about once in a thousand cases, less than a quarter in one of a hundred. Errors of correct programs were measured to be
up to 2.3 spreads, over some thousand gradients. A gradient that is off by 1e-2 is more than a hundred bounds away where
a case is well conditioned, with spreads of a few 1e-6.
"""
ROUNDINGS: Final = 2.0
"""How many epsilons of its dtype an error may come to beyond that.

A sum of few numbers may come out exactly in every draw, and all the same be rounded once in another order, and once
more when it is stored.
"""

MANY: Final = 100
"""Numbers of a result from which on its relative error is an average over many roundings, not one draw of luck."""

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
        A new tensor of the shape, dtype, device and `requires_grad` of `x`. Zeros stay zeros: they stand for what is
        masked or padded, and nothing rounds there. What is infinite or NaN stays so, and nothing finite becomes it.
    """
    if x.dtype not in _BITS:
        return x
    values = x.detach()
    steps = torch.randint(-1, 2, x.shape, generator=generator, dtype=torch.int8, device=generator.device).to(x.device)
    # Floats are sign and magnitude: the next pattern of bits is the next magnitude, for either sign.
    moved = (values.view(_BITS[x.dtype]) + steps).view(x.dtype)
    return torch.where((values == 0) | ~values.isfinite() | ~moved.isfinite(), values, moved).requires_grad_(
        x.requires_grad
    )


def relative_errors(results: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Compute norm(result - expected) / norm(expected) of each result, in float64.

    The norm below is at least `ZERO_BESIDE` times the largest norm among `expected`. Where a result or what is expected
    of it has a NaN or is infinite, and where something is there and exactly nothing is expected anywhere, the error is
    infinite; that of a tensor without elements is 0.

    Raises ValueError where the shapes, or how many tensors there are, differ.
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
        compute: maps inputs to results (outputs, gradients). It is called `draws + 1` times, must give the same for
            the same inputs (seed the dropout inside it) and must not change its inputs.
        inputs: all that rounding may have touched: weights as well as data, in the dtype whose rounding is meant.
        draws: how many times the inputs are moved, at least 1.
        seed: of the moves.

    Returns:
        For each result the worst of its relative errors against the unmoved result, as `relative_errors` gives them.
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
    """Bound the relative error of each result: the plain program's, `SPREADS` spreads, and `ROUNDINGS` epsilons.

    Args:
        spread: of the plain program, as `rounding_spread` gives it.
        dtype: that of the products, whose rounding no result escapes.
        plain_errors: of the plain program in the same dtype, against exact results; None where results are compared
            with those of the plain program itself. Not all rounding moves with the inputs: the gradient of a saturated
            sigmoid is g (1 - g), where the few digits of 1 - g stay the same however the inputs move, so that all
            programs in float32 are off by the same 1e-5 and no spread shows it.

    Raises ValueError where a number is not finite: any error would be within the bound.
    """
    bounds = []
    for place, (moved, plain) in enumerate(zip(spread, plain_errors or [0.0] * len(spread), strict=True)):
        bound = plain + SPREADS * moved + ROUNDINGS * torch.finfo(dtype).eps
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
    """Compute the relative error of each result of an operator, and what rounding of `dtype` lets it be.

    In float32 and float64 the bound is that of `error_bounds`: a few 1e-6 in float32 where a case is well conditioned.
    In 16 bits eight spreads are 5e-2, and would hide mistakes. Operators are tested there on inputs that are well
    conditioned (products of random numbers, softmax, normalisation; nothing is divided by a sum near zero), so that the
    error of the plain program is an average over many roundings: a result of `MANY` numbers may have twice that error.
    A result of fewer numbers, whose error is luck, has the bound of `error_bounds` there, too.

    Args:
        results: what is judged.
        expected: the same in float64.
        plain: computes the same in plain torch, with products in `dtype`, from `inputs`, as in `rounding_spread`.
        inputs: whatever is rounded: data and weights, in the dtypes that `plain` takes.
        dtype: of the products.
        roundings: epsilons of `dtype` that a result of 16 bits may be off by beyond that.

    Raises ValueError where the plain program gives something that is not finite.
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
    """Compute the Euclidean norm in float64; infinite where an element is NaN or infinite."""
    norm = float(x.detach().double().norm())
    return norm if math.isfinite(norm) else math.inf
