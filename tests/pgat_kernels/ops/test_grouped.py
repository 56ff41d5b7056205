"""Tests of grouped layers, compared with the same layers applied one by one."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pgat_kernels.ops.grouped import grouped_layer_norm, grouped_linear, pad_and_stack
from tests.pgat_kernels.gradients import normal

EXACT = 1e-10


def assert_equal(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Compare results and gradients of `inputs`."""
    assert torch.allclose(found, expected, rtol=0, atol=EXACT)
    upstream = normal(*expected.shape, seed=9)
    gradients = [torch.autograd.grad(y, inputs, upstream) for y in (found, expected)]
    for actual_grad, expected_grad in zip(*gradients, strict=True):
        assert torch.allclose(actual_grad, expected_grad, rtol=0, atol=EXACT)


SIZES = [(1, 1, 1, 1), (2, 1, 5, 3), (13, 7, 10, 64)]
"""Groups, rows, inputs, outputs."""


@pytest.mark.parametrize(("groups", "rows", "inputs", "outputs"), SIZES)
@pytest.mark.parametrize("rows_first", [False, True])
def test_grouped_linear_equals_separate_linear_layers(
    groups: int, rows: int, inputs: int, outputs: int, rows_first: bool
) -> None:
    x = normal(rows, groups, inputs).transpose(0, 1) if rows_first else normal(groups, rows, inputs)
    tensors = [x.requires_grad_(), normal(groups, outputs, inputs, seed=2), normal(groups, outputs, seed=3)]
    for tensor in tensors[1:]:
        tensor.requires_grad_()
    expected = torch.stack([F.linear(*layer) for layer in zip(*tensors, strict=True)])
    assert_equal(grouped_linear(*tensors), expected, tensors)


@pytest.mark.parametrize(("groups", "rows", "channels"), [(1, 1, 2), (2, 7, 3), (13, 3, 32)])
def test_grouped_layer_norm_equals_separate_layer_norms(groups: int, rows: int, channels: int) -> None:
    shapes = [(groups, rows, channels), (groups, channels), (groups, channels)]
    tensors = [normal(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    expected = torch.stack([F.layer_norm(x, (channels,), w, b) for x, w, b in zip(*tensors, strict=True)])
    assert_equal(grouped_layer_norm(*tensors), expected, tensors)


def test_layer_norm_of_16_bit_inputs_is_computed_in_float32() -> None:
    x = normal(2, 3, 32).bfloat16()
    weight, bias = normal(2, 32, seed=2).float(), normal(2, 32, seed=3).float()
    actual = grouped_layer_norm(x, weight, bias)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, grouped_layer_norm(x.float(), weight, bias))


def test_tensors_are_padded_with_zeros_at_the_end() -> None:
    tensors = [normal(2, 3).requires_grad_(), normal(1, 4).requires_grad_(), normal(2, 4).requires_grad_()]
    stacked = pad_and_stack(tensors, (2, 4))
    assert stacked.shape == (3, 2, 4)
    for row, tensor in zip(stacked, tensors, strict=True):
        rows, columns = tensor.shape
        assert torch.equal(row[:rows, :columns], tensor)
        assert row.count_nonzero() == tensor.numel()
    upstream = normal(3, 2, 4, seed=2)
    gradients = torch.autograd.grad(stacked, tensors, upstream)
    for gradient, row in zip(gradients, upstream, strict=True):
        assert torch.equal(gradient, row[: gradient.shape[0], : gradient.shape[1]])


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (6,), (2, 3, 1)])
def test_tensors_that_do_not_fit_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be padded"):
        pad_and_stack([normal(2, 3)], shape)
