"""Tests of multi-head attention by interpreted kernels, compared with blocks of plain torch and between launches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pgat_kernels.dispatch import Kernels
from pgat_kernels.instrumentation import record_compiled
from pgat_kernels.ops.attention import attention
from tests.pgat_kernels.ops.test_attention import SEED, inputs
from tests.rounding import assert_right_up_to_rounding

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("poisoned")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# groups, heads, queries, keys, width: heads of 5 columns in one program; heads of 26 by tiles
SHAPES = [(3, 2, 7, 7, 10), (1, 2, 97, 97, 52)]


def results(tensors: list[Tensor], kernels: Kernels, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return the result and the gradients with dropout of `inputs`."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    y = attention(*leaves, n_heads=shape[1], seed=SEED, rate=0.25, dtype=dtype, kernels=kernels)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad(y, leaves, g.to(y.dtype))]


def check(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check that kernels and blocks differ by rounding only, with the same dropout masks."""
    tensors = inputs(shape, torch.float32)
    with record_compiled() as kernels:
        actual = results(tensors, Kernels.ON, shape, dtype)
    assert len(kernels) == (3 if shape[2] > 64 else 2)
    assert actual[0].dtype == dtype
    exact = results([x.double() for x in tensors], Kernels.OFF, shape, torch.float64)
    assert_right_up_to_rounding(
        actual, exact, lambda rounded: results(rounded, Kernels.OFF, shape, dtype), tensors, dtype
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_blocks_up_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype)


@pytest.mark.usefixtures("large_tiles")
def test_many_tokens_equal_blocks_up_to_rounding() -> None:
    check((1, 1, 700, 700, 16), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_results_are_repeatable_in_any_order_of_programs(dtype: torch.dtype, reversed_grid: Callable[[], None]) -> None:
    tensors = inputs(SHAPES[1], torch.float32)
    forwards = results(tensors, Kernels.ON, SHAPES[1], dtype)
    reversed_grid()
    again = results(tensors, Kernels.ON, SHAPES[1], dtype)
    assert all(torch.equal(a, b) for a, b in zip(again, forwards, strict=True))


@pytest.mark.parametrize(("queries", "biased", "dtype"), [(5, False, None), (7, True, None), (7, False, torch.float64)])
def test_calls_that_kernels_do_not_support_are_computed_in_blocks(
    queries: int, biased: bool, dtype: torch.dtype | None
) -> None:
    tensors = inputs((1, 2, queries, 7, 8), torch.float32, biased)
    with record_compiled() as kernels:
        y = attention(*tensors, n_heads=2, seed=SEED, dtype=dtype, kernels=Kernels.ON)
    assert not kernels
    assert torch.equal(y, attention(*tensors, n_heads=2, seed=SEED, dtype=dtype))


@pytest.mark.compile
def test_compiled_results_equal_eager_results() -> None:
    x, _, w, b = inputs((2, 2, 7, 7, 8), torch.float32)

    def call(x: Tensor, w: Tensor, b: Tensor) -> Any:
        return attention(x * 1.5, x * 0.5, w, b, n_heads=2, seed=SEED, rate=0.2, kernels=Kernels.ON)

    compiled = torch.compile(call, fullgraph=True, dynamic=False)
    with record_compiled() as kernels:
        y = compiled(x, w, b)
        actual = [y, *torch.autograd.grad(y.square().sum(), (x, w, b))]
    assert len(kernels) == 2
    z = call(x, w, b)
    for found, expected in zip(actual, [z, *torch.autograd.grad(z.square().sum(), (x, w, b))], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
