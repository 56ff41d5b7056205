"""Tests of composed affine maps, and of attention over one key as an affine map."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_kernels.ops.affine import Affine, compose, single_key_attention
from tests.pgat_kernels.gradients import normal

EXACT = 1e-10


def affine(*shape: int, seed: int) -> Affine:
    """Return a random map [..., O, I]."""
    return Affine(normal(*shape, seed=seed).requires_grad_(), normal(*shape[:-1], seed=seed + 1).requires_grad_())


def apply(layer: Affine, x: Tensor) -> Tensor:
    return (layer.weight @ x[..., None])[..., 0] + layer.bias


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, normal(*y.shape, seed=9))


@pytest.mark.parametrize("groups", [(), (1,), (13,), (2, 3)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 5, 3), (10, 10, 64)])
def test_composed_map_equals_applying_both(groups: tuple[int, ...], sizes: tuple[int, int, int]) -> None:
    inner, middle, outer = sizes
    first, second = affine(*groups, middle, inner, seed=2), affine(*groups, outer, middle, seed=4)
    x = normal(7, *groups, inner).requires_grad_()
    inputs = [x, *first, *second]
    actual, expected = apply(compose(first, second), x), apply(second, apply(first, x))
    assert torch.allclose(actual, expected, rtol=0, atol=EXACT)
    for actual_grad, expected_grad in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
        assert torch.allclose(actual_grad, expected_grad, rtol=0, atol=EXACT)


@pytest.mark.parametrize("n_heads", [1, 2, 8])
@pytest.mark.parametrize("queries", [1, 5])
def test_attention_over_one_key_equals_its_value_path(n_heads: int, queries: int) -> None:
    attention = nn.MultiheadAttention(8, n_heads, batch_first=True).double()
    with torch.no_grad():
        for seed, parameter in enumerate(attention.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    key = normal(3, 1, 8).requires_grad_()
    expected = attention(normal(3, queries, 8, seed=5), key, key)[0]
    value = Affine(attention.in_proj_weight[16:], attention.in_proj_bias[16:])
    merged = single_key_attention(value, Affine(attention.out_proj.weight, attention.out_proj.bias))
    actual = F.linear(key, *merged).expand_as(expected)
    assert torch.allclose(actual, expected, rtol=0, atol=EXACT)
    inputs = [key, *attention.parameters()]
    for actual_grad, expected_grad in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
        assert torch.allclose(actual_grad, expected_grad, rtol=0, atol=EXACT)  # 0 for the query and key rows


def test_mismatched_sizes_raise() -> None:
    with pytest.raises(RuntimeError):
        compose(affine(4, 3, seed=2), affine(4, 3, seed=4))
