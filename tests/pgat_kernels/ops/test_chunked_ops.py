"""Tests that operators over rows give the same results and gradients for all chunks, and keep only their inputs."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from pgat_kernels.instrumentation import few_chunks
from pgat_kernels.ops import chunk_sizes, chunked_ops
from pgat_kernels.ops.backward_memory import bytes_kept
from pgat_kernels.ops.chunk_sizes import auto_chunk, starts, take
from pgat_kernels.ops.chunked_ops import Chunking, RowsOperator
from pgat_kernels.ops.compiled import how_compiled
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.registration import Backward
from pgat_kernels.ops.vjp import gelu_dropout, linear

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def _program(
    rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Sequence[int]
) -> tuple[Tensor, Backward]:
    """Compute dropout(gelu(x W' + b)) * options[0] + y."""
    h, linear_back = linear(rows[0], *weights)
    a, gelu_back = gelu_dropout(h, masks, 0)

    def backward(g: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        g_x, *grads = linear_back(gelu_back(g * options[0]))
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


def run(count: int, chunk: int | None, rate: float, compiled: bool = False, keep: int = 0) -> list[Tensor]:
    """Return the result and all gradients."""
    rows, weights = inputs(count)
    y = example(rows, weights, SEED, rate, [3], chunk, torch.float64, compiled, keep)
    return [y, *torch.autograd.grad(y.square().sum(), [*rows, *weights])]


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 7, 12])
def test_results_do_not_depend_on_the_chunk(count: int, rate: float) -> None:
    whole = run(count, None, rate)
    for chunk in (1, 2, 5, 12, 40):
        for actual, expected in zip(run(count, chunk, rate), whole, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.compile
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_compiled_chunks_equal_eager_chunks(rate: float) -> None:
    for actual, expected in zip(run(7, 3, rate, compiled=True), run(7, 3, rate), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.compile
def test_chunks_compiled_as_a_whole_equal_eager_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the program of a chunk is compiled, and not its fragments."""
    expected = run(7, 3, 0.3)
    on_gpu = partial(how_compiled, device=GPU)
    monkeypatch.setattr(chunked_ops, "how_compiled", lambda program, compiled, device: on_gpu(program, compiled))
    for actual, eager in zip(run(7, 3, 0.3, compiled=True), expected, strict=True):
        torch.testing.assert_close(actual, eager, rtol=1e-12, atol=1e-12)


def test_operator_passes_opcheck() -> None:
    rows, weights = inputs(7, torch.float32)
    torch.library.opcheck(example.operator._opoverload, (rows, weights, SEED, 0.2, [3], 2, torch.float32, False))


def test_gradients_are_bitwise_repeatable() -> None:
    assert all(torch.equal(a, b) for a, b in zip(run(12, 5, 0.3), run(12, 5, 0.3), strict=True))


def test_only_inputs_are_saved() -> None:
    rows, weights = inputs(12)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        example(rows, weights, SEED, 0.1, [3], 4, torch.float64, False)
    storages = {tensor.untyped_storage().data_ptr() for tensor in (*rows, *weights, SEED)}
    assert {tensor.untyped_storage().data_ptr() for tensor in saved} <= storages


A_CHUNK = 3 * (6 * 8 + 8) + 8
"""Bytes that the backward pass of 3 rows holds: hidden units in float64, a mask in whole words, and the number of the
first row."""


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("keep", [1, A_CHUNK, 2 * A_CHUNK, 10**9])
def test_results_with_kept_chunks_are_bitwise_the_same(keep: int, rate: float) -> None:
    for actual, expected in zip(run(8, 3, rate, keep=keep), run(8, 3, rate), strict=True):
        assert torch.equal(actual, expected)


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List that gets one element for every recomputed chunk."""
    calls: list[int] = []
    backward = example.backward_chunk

    def counted(*args: Any) -> Any:
        calls.append(1)
        return backward(*args)

    monkeypatch.setattr(example, "backward_chunk", counted)
    return calls


@pytest.mark.parametrize(("keep", "kept"), [(A_CHUNK - 1, 0), (A_CHUNK, 1), (2 * A_CHUNK, 2), (3 * A_CHUNK, 3)])
def test_number_of_kept_chunks_is_the_largest_that_fits(keep: int, kept: int, again: list[int]) -> None:
    rows, weights = inputs(9)
    chunking = Chunking(0.3, [3], 3, torch.float64, False)
    assert example.count_kept(rows, weights, chunking, keep) == (kept, kept * A_CHUNK)
    y = example(rows, weights, SEED, 0.3, [3], 3, torch.float64, False, keep)
    assert bytes_kept(y.sum()) == kept * A_CHUNK
    y.sum().backward()
    assert len(again) == 3 - kept


def test_second_backward_pass_recomputes_kept_chunks(again: list[int]) -> None:
    rows, weights = inputs(9)
    y = example(rows, weights, SEED, 0.3, [3], 3, torch.float64, False, 10**9).sum()
    first = torch.autograd.grad(y, [*rows, *weights], retain_graph=True)
    assert len(again) == 0
    second = torch.autograd.grad(y, [*rows, *weights])
    assert len(again) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_few_chunks_are_the_first_two_and_the_last_partial_one() -> None:
    assert starts(12, 3) == starts(10, 3) == [0, 3, 6, 9]
    with few_chunks():
        assert starts(12, 3) == [0, 3]
        assert starts(10, 3) == [0, 3, 9]
        assert starts(3, 3) == starts(2, 3) == [0]
    assert starts(12, 3) == [0, 3, 6, 9]


def test_weight_modified_before_the_backward_pass_raises() -> None:
    rows, weights = inputs(9)
    y = example(rows, weights, SEED, 0.3, [3], 3, torch.float64, False, 10**9).sum()
    with torch.no_grad():
        weights[0].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_is_kept_without_gradients(grad: bool) -> None:
    rows, weights = inputs(9)
    rows, weights = [x.detach() for x in rows], [w.detach() for w in weights]
    with torch.set_grad_enabled(grad):
        y = example(rows, weights, SEED, 0.3, [3], 3, torch.float64, False, 10**9)
    assert y.grad_fn is None


def test_bfloat16_products_give_float32_results_and_gradients() -> None:
    rows, weights = inputs(12, torch.float32)
    y = example(rows, weights, SEED, 0.0, [1], 4, torch.bfloat16, False)
    grads = torch.autograd.grad(y.sum(), [*rows, *weights])
    assert {y.dtype, *(g.dtype for g in grads)} == {torch.float32}


@pytest.mark.parametrize(
    ("rows", "size", "expected"), [(250, 10, 10), (4000, 10, 10), (7, 10, 7), (11, 10, 6), (1, 0, 1)]
)
def test_auto_chunk_spreads_rows_evenly(rows: int, size: int, expected: int) -> None:
    bytes_a_row = chunk_sizes.CACHE // size if size else 10 * chunk_sizes.CACHE
    assert auto_chunk(rows, bytes_a_row, CPU) == expected
    assert auto_chunk(rows, bytes_a_row, GPU) >= expected


def test_partial_chunk_is_padded_with_zeros() -> None:
    x = torch.arange(1.0, 11).view(5, 2)
    assert torch.equal(take(x, 0, 3), x[:3])
    assert take(x, 3, 3).tolist() == [[7, 8], [9, 10], [0, 0]]
