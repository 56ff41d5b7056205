"""Tests of strengths between pairs of bodies, compared with the formula with one product per pair."""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

import pgat_kernels.ops.aspects as module
from pgat_kernels.ops.aspects import aspects, node_count, pair_terms
from tests.pgat_kernels.gradients import assert_close, normal, results
from tests.rounding import assert_right_up_to_rounding


def parameters(timesteps: int, nodes: int, width: int) -> list[Tensor]:
    """Return market, vectors of the bodies, W1, b1, w2 and b2 in the shapes of the reference."""
    shapes = [(timesteps, width), (nodes, width), (width, 2 * width), (width,), (1, width), (1,)]
    values = [normal(*shape, seed=k) for k, shape in enumerate(shapes)]
    values[2] /= width**0.5
    values[4] /= width**0.5
    return values


def of_every_pair(m: Tensor, bodies: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Compute section 3 of docs/model.md directly, from the vectors of both bodies side by side."""
    u = bodies + m[:, None]
    nodes = len(bodies)
    rows = [[torch.ones_like(m[:, 0]) for _ in range(nodes)] for _ in range(nodes)]
    for i in range(nodes):
        for j in range(i + 1, nodes):
            hidden = F.gelu(F.linear(torch.cat((u[:, i], u[:, j]), dim=-1), w1, b1))
            strength = torch.sigmoid(F.linear(hidden, w2, b2).to(torch.promote_types(hidden.dtype, torch.float32)))
            rows[i][j] = rows[j][i] = strength[:, 0]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def rewritten(m: Tensor, bodies: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    x, constants = pair_terms(m, bodies, w1, b1)
    return aspects(x, constants, w2.flatten(), b2)


SIZES = [(1, 2, 1), (1, 13, 8), (3, 13, 13), (7, 3, 5), (50, 13, 26)]


@pytest.mark.parametrize(("timesteps", "nodes", "width"), SIZES)
def test_strengths_and_gradients_equal_those_computed_per_pair(timesteps: int, nodes: int, width: int) -> None:
    values = parameters(timesteps, nodes, width)
    assert_close(results(rewritten, values), results(of_every_pair, values))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    values = parameters(7, 5, 6)
    expected = results(of_every_pair, values)
    monkeypatch.setattr(module, "_CACHE", rows * 10 * 6 * 8)  # ten pairs, six channels, float64
    assert_close(results(rewritten, values), expected)


@pytest.mark.parity
def test_float32_errors_are_within_the_rounding_bound() -> None:
    values = parameters(40, 13, 52)
    assert_right_up_to_rounding(
        results(rewritten, values, torch.float32),
        results(of_every_pair, values),
        lambda tensors: results(of_every_pair, tensors, torch.float32),
        [value.float() for value in values],
        torch.float32,
    )


def test_bfloat16_terms_are_computed_in_float32() -> None:
    x, constants = pair_terms(*parameters(5, 4, 6)[:4])
    bf16_terms = [tensor.to(torch.bfloat16).requires_grad_() for tensor in (x, constants)]
    weight, bias = normal(6, dtype=torch.float32).requires_grad_(), normal(1, dtype=torch.float32).requires_grad_()
    actual = aspects(*bf16_terms, weight, bias)
    assert actual.dtype == torch.float32
    fp64_inputs = [tensor.detach().double().requires_grad_() for tensor in (*bf16_terms, weight, bias)]
    expected = aspects(*fp64_inputs)
    assert torch.allclose(actual.double(), expected, rtol=0, atol=1e-6)
    gradients = torch.autograd.grad(actual, (*bf16_terms, weight, bias), normal(5, 4, 4, dtype=torch.float32))
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for actual_grad, expected_grad in zip(
        gradients, torch.autograd.grad(expected, fp64_inputs, normal(5, 4, 4)), strict=True
    ):
        step = 2**-8 if actual_grad.dtype == torch.bfloat16 else 1e-6
        assert torch.allclose(actual_grad.double(), expected_grad, rtol=step, atol=1e-6)


def test_autocast_does_not_affect_the_operator() -> None:
    x, constants = pair_terms(*parameters(5, 4, 6)[:4])
    inputs = [tensor.float() for tensor in (x, constants, normal(6), normal(1))]
    expected = aspects(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(aspects(*inputs), expected)


def test_strengths_are_symmetric_with_diagonal_one() -> None:
    strengths = rewritten(*parameters(6, 13, 8))
    assert torch.equal(strengths, strengths.transpose(1, 2))
    assert bool((strengths.diagonal(dim1=1, dim2=2) == 1).all())
    assert strengths.is_contiguous()


def test_gradient_of_the_diagonal_is_zero() -> None:
    values = [value.requires_grad_() for value in parameters(3, 4, 5)]
    output = rewritten(*values)
    gradients = torch.autograd.grad(output.diagonal(dim1=1, dim2=2).sum(), values)
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_results_are_bitwise_repeatable() -> None:
    values = parameters(9, 13, 8)
    for first, second in zip(*(results(rewritten, values, torch.float32) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


def test_gradient_of_the_bodies_is_repeatable_with_threads() -> None:
    """Gradients of entries that are gathered twice would be added up in an arbitrary order if there are many."""
    generator = torch.Generator().manual_seed(1)
    sizes = [(3, 512), (13, 512), (512, 1024), (512,)]
    inputs = [torch.randn(size, generator=generator).requires_grad_() for size in sizes]
    _, constants = pair_terms(*inputs)
    g = torch.randn(constants.shape, generator=generator)
    first = torch.autograd.grad(constants, inputs[1], g, retain_graph=True)[0]
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for _ in range(20):
            assert torch.equal(torch.autograd.grad(constants, inputs[1], g, retain_graph=True)[0], first)
    finally:
        torch.set_num_threads(before)


def test_only_arguments_and_result_are_saved() -> None:
    x, constants = (tensor.detach().requires_grad_() for tensor in pair_terms(*parameters(20, 13, 8)[:4]))
    weight, bias = normal(8).requires_grad_(), normal(1).requires_grad_()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = aspects(x, constants, weight, bias)
    places = {tensor.data_ptr() for tensor in (x, constants, weight, bias, output)}
    assert {tensor.data_ptr() for tensor in saved} <= places


@pytest.mark.parametrize("pairs", [2, 4, 5, 77])
def test_invalid_number_of_pairs_raises(pairs: int) -> None:
    with pytest.raises(ValueError, match="pairs"):
        aspects(normal(3, 4), normal(pairs, 4), normal(4), normal(1))


def test_node_count_inverts_the_number_of_pairs() -> None:
    assert [node_count(n * (n - 1) // 2) for n in range(2, 200)] == list(range(2, 200))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_pass_opcheck(dtype: torch.dtype) -> None:
    x, constants = pair_terms(*parameters(5, 4, 6)[:4])
    inputs = [tensor.detach().to(dtype) for tensor in (x, constants, normal(6), normal(1))]
    result = aspects(*inputs)
    torch.library.opcheck(aspects, tuple(tensor.requires_grad_() for tensor in inputs))
    gradient = normal(5, 4, 4, dtype=dtype)
    torch.library.opcheck(
        module.aspects_backward, (gradient, *(tensor.detach() for tensor in inputs[:3]), result.detach())
    )


@pytest.mark.compile
def test_compiled_results_equal_eager_results() -> None:
    values = parameters(7, 5, 6)
    compiled = torch.compile(rewritten, fullgraph=True, dynamic=False)
    assert_close(results(compiled, values), results(rewritten, values))
