"""Tests of the interpreted GRU kernels, compared with the loop in plain torch in float64 and between launches."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pgat_kernels.instrumentation import record_launches
from pgat_kernels.ops.gru import gru_bank
from tests.rounding import assert_right_up_to_rounding

pytestmark = pytest.mark.parity

# batch, steps, groups, inputs, states
SHAPES = [(1, 1, 1, 1, 1), (2, 7, 13, 32, 32), (17, 5, 2, 3, 13), (3, 4, 1, 16, 128), (16, 9, 3, 8, 16)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    batch, steps, groups, width, size = shape
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = ((batch, steps, groups, width), (groups, 3 * size, width), (groups, 3 * size, size))
    tensors = [torch.randn(tensor_shape, generator=generator) for tensor_shape in (*sizes, *[(groups, 3 * size)] * 2)]
    return [(x / size**0.5).to(dtype).requires_grad_() for x in tensors]


def computed(shape: tuple[int, ...], dtype: torch.dtype, kernels: bool, recompute: bool = True) -> list[Tensor]:
    """Return the states and all gradients."""
    return of_tensors(inputs(shape, dtype), kernels, recompute)


def of_tensors(tensors: list[Tensor], kernels: bool, recompute: bool = True) -> list[Tensor]:
    y = gru_bank(*tensors, tensors[0].dtype, kernels, recompute)
    generator = torch.Generator().manual_seed(1)
    do = torch.randn(y.shape, generator=generator).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, do)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_and_gradients_are_within_the_rounding_bound(shape: tuple[int, ...]) -> None:
    exact, actual = computed(shape, torch.float64, False), computed(shape, torch.float32, True)
    assert_right_up_to_rounding(
        actual, exact, lambda tensors: of_tensors(tensors, False), inputs(shape, torch.float32), torch.float32
    )


@pytest.mark.parametrize("shape", [SHAPES[2], pytest.param(SHAPES[1], marks=pytest.mark.slow)], ids=str)
def test_kept_gates_give_the_same_results_as_recomputed_ones(shape: tuple[int, ...]) -> None:
    kept, recomputed = (computed(shape, torch.float32, True, recompute) for recompute in (False, True))
    assert torch.equal(kept[0], recomputed[0])
    for actual, expected in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_results_do_not_depend_on_program_order(reversed_grid: Callable[[], None]) -> None:
    forwards = computed(SHAPES[2], torch.float32, True)
    reversed_grid()
    backwards = computed(SHAPES[2], torch.float32, True)
    assert all(torch.equal(a, b) for a, b in zip(backwards, forwards, strict=True))


def test_each_loop_is_one_launch() -> None:
    tensors = inputs(SHAPES[1], torch.float32)
    with record_launches() as launches:
        y = gru_bank(*tensors, torch.float32, True)
        y.sum().backward()
    assert [launch.kernel.__name__ for launch in launches] == ["_gru_scan_fwd_kernel", "_gru_scan_bwd_kernel"]


def test_unsupported_inputs_launch_no_kernel() -> None:
    with record_launches() as launches:
        computed((2, 3, 1, 4, 129), torch.float32, True)
        computed(SHAPES[1], torch.float64, True)
        computed(SHAPES[1], torch.float32, False)
    assert launches == []
