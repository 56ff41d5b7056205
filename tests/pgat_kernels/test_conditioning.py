"""Tests of moves by one unit in the last place, relative errors, spreads of results, and error bounds."""

import math

import pytest
import torch
from torch import Tensor

from pgat_kernels.conditioning import error_bounds, moved_by_rounding, relative_errors, rounding_spread

pytestmark = pytest.mark.parity

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


# --- moves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_elements_move_to_a_neighbour_or_stay(dtype: torch.dtype) -> None:
    x = torch.cat((normal(3000, dtype=dtype), torch.tensor([1.0, -1.0, 2.0, -0.5], dtype=dtype)))
    moved = moved_by_rounding(x, generator())
    infinity = torch.tensor(math.inf, dtype=dtype)
    up, down = torch.nextafter(x, infinity), torch.nextafter(x, -infinity)
    for neighbour in (up, x, down):
        assert 0.28 < float((moved == neighbour).double().mean()) < 0.39
    assert bool(((moved == up) | (moved == x) | (moved == down)).all())


def test_float16_moves_by_its_unit_in_the_last_place() -> None:
    x = torch.ones(300, dtype=torch.float16)
    assert moved_by_rounding(x, generator()).unique().tolist() == [1 - 2**-11, 1, 1 + 2**-10]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_zeros_and_non_finite_values_do_not_move(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, largest, -largest]
    x = torch.tensor(special, dtype=dtype).repeat(50)
    moved = moved_by_rounding(x, generator()).view(50, -1)
    expected = torch.tensor(special, dtype=dtype).expand(50, -1)
    assert torch.equal(moved[:, :4], expected[:, :4])
    assert torch.equal(moved[:, :2].signbit(), expected[:, :2].signbit())
    assert bool(moved[:, 4].isnan().all())
    assert bool(moved[:, 5:].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.complex64])
def test_other_dtypes_are_unchanged(dtype: torch.dtype) -> None:
    x = torch.ones(9, dtype=dtype)
    assert moved_by_rounding(x, generator()) is x


def test_moves_depend_on_the_generator_and_do_not_change_the_input() -> None:
    x = normal(50)
    before = x.clone()
    first, repeated, other = (moved_by_rounding(x, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)
    shared_generator = generator(1)
    assert not torch.equal(moved_by_rounding(x, shared_generator), moved_by_rounding(x, shared_generator))


def test_shape_layout_and_requires_grad_are_kept() -> None:
    x = normal(4, 5, 6).permute(2, 0, 1).requires_grad_()
    moved = moved_by_rounding(x, generator())
    assert (moved.shape, moved.stride(), moved.dtype) == (x.shape, x.stride(), x.dtype)
    assert moved.requires_grad
    assert moved.is_leaf
    assert not moved_by_rounding(x.detach(), generator()).requires_grad
    assert moved_by_rounding(normal(1, 3).expand(5, 3), generator()).shape == (5, 3)
    assert moved_by_rounding(torch.tensor(1.0), generator()).shape == ()
    assert moved_by_rounding(torch.empty(0, 3), generator()).shape == (0, 3)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_relative_to_the_norm() -> None:
    expected = [torch.tensor([3.0, 4.0]), torch.tensor([[10.0]])]
    results = [torch.tensor([3.0, 4.5]), torch.tensor([[10.0]])]
    assert relative_errors(results, expected) == [pytest.approx(0.1, rel=1e-15), 0.0]


def test_errors_are_computed_in_float64() -> None:
    (error,) = relative_errors([torch.tensor([1.0])], [torch.tensor([1.0 + 1e-12], dtype=torch.float64)])
    assert error == pytest.approx(1e-12, rel=1e-3)
    (error,) = relative_errors([torch.full((4,), 3e38)], [torch.full((4,), 2e38)])  # its square overflows in float32
    assert error == pytest.approx(0.5, rel=1e-6)


def test_error_of_a_zero_gradient_is_relative_to_the_largest_norm() -> None:
    expected = [torch.tensor([1000.0]), torch.tensor([1e-17])]
    results = [torch.tensor([1000.0]), torch.tensor([5e-4])]
    assert relative_errors(results, expected) == [0.0, pytest.approx(0.5, rel=1e-6)]
    assert relative_errors(results[1:], expected[1:])[0] > 1e12  # there is no larger result


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_values_have_an_infinite_error(bad: float) -> None:
    good, broken = torch.ones(3), torch.tensor([1.0, bad, 1.0])
    assert relative_errors([broken, good], [good, good]) == [math.inf, 0.0]
    assert relative_errors([good, good], [broken, good]) == [math.inf, 0.0]
    assert relative_errors([broken, good], [broken, good]) == [math.inf, 0.0]


def test_errors_of_zero_and_empty_results() -> None:
    zero, empty = torch.zeros(2), torch.empty(0)
    assert relative_errors([zero, empty], [zero, empty]) == [0.0, 0.0]
    assert relative_errors([torch.ones(2)], [zero]) == [math.inf]
    assert relative_errors([], []) == []


def test_results_of_wrong_shape_or_number_raise() -> None:
    with pytest.raises(ValueError, match=r"result 1 has the shape \(1, 3\), expected \(3,\)"):
        relative_errors([torch.ones(1), torch.ones(1, 3)], [torch.ones(1), torch.ones(3)])
    with pytest.raises(ValueError, match="there are 1 results where 2 are expected"):
        relative_errors([torch.ones(1)], [torch.ones(1), torch.ones(3)])


# --- spread -----------------------------------------------------------------------------------------------------------


def divided(inputs: list[Tensor]) -> list[Tensor]:
    """Return rows divided by their sums, and the gradient of the squares of the first column."""
    x = inputs[0].detach().requires_grad_()
    y = x / x.sum(dim=1, keepdim=True)
    return [y, *torch.autograd.grad(y[:, 0].square().sum(), x)]


def with_row_sums(gap: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return rows [20, 8] of numbers of magnitude about 1 whose sum is `gap`."""
    x = normal(20, 8, dtype=torch.float64)
    return (x - x.mean(dim=1, keepdim=True) + gap / 8).to(dtype)


def test_spread_grows_with_the_condition_number() -> None:
    good, bad = (rounding_spread(divided, [with_row_sums(gap)]) for gap in (8.0, 1e-3))
    assert all(2**-25 < spread < 2**-20 for spread in good)
    assert all(1e-5 < spread < 1e-2 for spread in bad)


@pytest.mark.parametrize("gap", [8.0, 1e-1, 1e-3])
def test_float32_error_is_within_its_bound_at_any_condition_number(gap: float) -> None:
    x = with_row_sums(gap)
    errors = relative_errors(divided([x]), divided([x.double()]))
    bounds = error_bounds(rounding_spread(divided, [x]), torch.float32)
    assert all(error <= bound for error, bound in zip(errors, bounds, strict=True))


def test_wrong_gradient_exceeds_its_bound_in_a_well_conditioned_case() -> None:
    x = with_row_sums(8.0)
    result, gradient = divided([x])
    exact = divided([x.double()])
    bounds = error_bounds(rounding_spread(divided, [x]), torch.float32, relative_errors([result, gradient], exact))
    errors = relative_errors([result, gradient * 1.0001], exact)
    assert errors[0] <= bounds[0]
    assert errors[1] > 10 * bounds[1]


def test_all_floating_inputs_move_and_draws_are_reproducible() -> None:
    calls: list[list[Tensor]] = []

    def note(inputs: list[Tensor]) -> list[Tensor]:
        calls.append(inputs)
        return [inputs[0] * inputs[1].sum()]

    inputs = [normal(40), normal(30, seed=2), torch.arange(3)]
    spread = rounding_spread(note, inputs, draws=2, seed=5)
    assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(calls[0], inputs, strict=True))
    for moved in calls[1:]:
        assert not torch.equal(moved[0], inputs[0])
        assert not torch.equal(moved[1], inputs[1])
        assert torch.equal(moved[2], inputs[2])
    assert not torch.equal(calls[1][0], calls[2][0])
    assert rounding_spread(note, inputs, draws=2, seed=5) == spread
    assert rounding_spread(note, inputs, draws=3, seed=5)[0] >= spread[0] > 0
    assert rounding_spread(note, inputs, draws=2, seed=6) != spread


def test_results_overwritten_by_later_draws_are_compared_correctly() -> None:
    """Gradients that accumulate in the same tensors are overwritten, for example."""
    place = torch.zeros(30)

    def write(inputs: list[Tensor]) -> list[Tensor]:
        return [place.copy_(inputs[0])]

    assert rounding_spread(write, [normal(30)])[0] > 0


def test_non_finite_spread_or_plain_error_raises() -> None:
    spread = rounding_spread(lambda inputs: [inputs[0].log()], [torch.tensor([-1.0])])
    assert spread == [math.inf]
    for spreads, plain_errors in ((spread, [0.0]), ([0.0], spread), ([0.0], [math.nan])):
        with pytest.raises(ValueError, match="result 0 of the plain program is not finite"):
            error_bounds(spreads, torch.float32, plain_errors)


def test_bounds_include_plain_errors_that_the_spread_does_not_show() -> None:
    """The gradient of a saturated sigmoid is an example."""

    def slope(inputs: list[Tensor]) -> list[Tensor]:
        x = inputs[0].detach().requires_grad_()
        return list(torch.autograd.grad(x.sigmoid().sum(), x))

    x = torch.tensor([12.7])
    spread, errors = rounding_spread(slope, [x]), relative_errors(slope([x]), slope([x.double()]))
    assert errors[0] > 8 * spread[0] + 2 * 2**-23
    assert errors[0] <= error_bounds(spread, torch.float32, errors)[0]


def test_zero_draws_raise() -> None:
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        rounding_spread(divided, [with_row_sums(1.0)], draws=0)


def test_bounds_are_sums_of_plain_errors_spreads_and_roundings() -> None:
    bounds = error_bounds([0.0, 1e-3], torch.float32, [0.0, 2e-3])
    assert bounds == [2 * 2**-23, pytest.approx(1e-2 + 2 * 2**-23)]
    assert error_bounds([0.0], torch.bfloat16) == [2 * 2**-7]
