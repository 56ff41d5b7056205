"""Operators over rows: the same result and gradients whatever the chunks are, and nothing kept but the inputs."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pgat_kernels import chunks
from pgat_kernels.chunks import Backward, Masks, RowsOperator, auto_chunk, take
from pgat_kernels.pairs import dropout, gelu, linear

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def _program(
    rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
) -> tuple[Tensor, Backward]:
    """dropout(gelu(x W' + b)) * options[0] + y."""
    h, linear_back = linear(rows[0], *weights)
    a, gelu_back = gelu(h)
    a, dropout_back = dropout(a, masks, 0)

    def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        g_x, *grads = linear_back(gelu_back(dropout_back(g * options[0])))
        return [g_x.to(g.dtype), g], grads

    return a.to(rows[1].dtype) * options[0] + rows[1], backward


example = RowsOperator(
    "example_of_tests",
    _program,
    lambda rows: torch.empty_like(rows[1]),
    lambda weights, dtype, options: [weight.to(dtype) for weight in weights],
)
SEED = torch.tensor(9)


def inputs(count: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(2)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return [randn(count, 5), randn(count, 6)], [randn(6, 5), randn(6)]


def run(count: int, chunk: int | None, rate: float, compiled: bool = False) -> list[Tensor]:
    """Result and all gradients."""
    rows, weights = inputs(count)
    y = example(rows, weights, SEED, rate, [3], chunk, torch.float64, compiled)
    return [y, *torch.autograd.grad(y.square().sum(), [*rows, *weights])]


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 7, 12])
def test_the_chunk_changes_nothing(count: int, rate: float) -> None:
    whole = run(count, None, rate)
    for chunk in (1, 2, 5, 12, 40):
        for found, expected in zip(run(count, chunk, rate), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [pytest.param(0.0, marks=pytest.mark.compile), 0.3])
def test_compiled_chunks_equal_eager_ones(rate: float) -> None:
    for found, expected in zip(run(7, 3, rate, compiled=True), run(7, 3, rate), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_operator_is_well_formed() -> None:
    rows, weights = inputs(7, torch.float32)
    torch.library.opcheck(example.operator._opoverload, (rows, weights, SEED, 0.2, [3], 2, torch.float32, False))


def test_gradients_are_bitwise_repeatable() -> None:
    assert all(torch.equal(a, b) for a, b in zip(run(12, 5, 0.3), run(12, 5, 0.3), strict=True))


def test_only_inputs_are_kept() -> None:
    rows, weights = inputs(12)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        example(rows, weights, SEED, 0.1, [3], 4, torch.float64, False)
    storages = {tensor.untyped_storage().data_ptr() for tensor in (*rows, *weights, SEED)}
    assert {tensor.untyped_storage().data_ptr() for tensor in saved} <= storages


def test_bfloat16_weights_give_gradients_in_the_dtype_of_the_parameters() -> None:
    rows, weights = inputs(12, torch.float32)
    y = example(rows, weights, SEED, 0.0, [1], 4, torch.bfloat16, False)
    grads = torch.autograd.grad(y.sum(), [*rows, *weights])
    assert {y.dtype, *(g.dtype for g in grads)} == {torch.float32}


@pytest.mark.parametrize(
    ("rows", "size", "expected"), [(250, 10, 10), (4000, 10, 10), (7, 10, 7), (11, 10, 6), (1, 0, 1)]
)
def test_chunks_are_even(rows: int, size: int, expected: int) -> None:
    bytes_a_row = chunks.CACHE // size if size else 10 * chunks.CACHE
    assert auto_chunk(rows, bytes_a_row, CPU) == expected
    assert auto_chunk(rows, bytes_a_row, GPU) >= expected


def test_a_part_chunk_is_filled_with_zeros() -> None:
    x = torch.arange(1.0, 11).view(5, 2)
    assert torch.equal(take(x, 0, 3), x[:3])
    assert take(x, 3, 3).tolist() == [[7, 8], [9, 10], [0, 0]]
