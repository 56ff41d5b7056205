"""Tests that the attention block over low-rank tokens equals a block that projects every token."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.low_rank_attention import LowRankWeights, low_rank_attention_block, low_rank_weights
from tests.rounding import assert_right_up_to_rounding

SHAPES = [(1, 1, 1, 4, 3), (3, 5, 2, 8, 3), (2, 13, 8, 16, 3), (2, 9, 1, 6, 1)]
"""Groups, tokens, heads, width and numbers per token."""
NO_DROPOUT = Masks(0.0, torch.tensor(0), torch.tensor(0))


def parameters(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """Return the values of the tokens, then the parameters of `low_rank_weights` in their order."""
    groups, tokens, _, width, numbers = shape
    generator = torch.Generator().manual_seed(1)
    sizes: list[tuple[int, ...]] = [(groups, tokens, numbers), (width, numbers), (width,)]
    sizes += [(3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in sizes]


def plain(n_heads: int, a: Tensor, projection: Tensor, bias: Tensor, *w: Tensor) -> Tensor:
    """Compute the block with torch's attention over projected tokens."""
    t = F.linear(a, projection, bias)
    attended, _ = F.multi_head_attention_forward(
        *(t.transpose(0, 1),) * 3, t.shape[-1], n_heads, w[0], w[1], None, None, False, 0.0, w[2], w[3],
        need_weights=False,
    )  # fmt: skip
    return F.layer_norm(t + attended.transpose(0, 1), t.shape[-1:], w[4], w[5])


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_gradients_equal_a_projecting_block(shape: tuple[int, ...]) -> None:
    n_heads, tensors = shape[2], parameters(shape, torch.float64)
    expected_output = plain(n_heads, *tensors)
    g = torch.randn_like(expected_output)
    expected = torch.autograd.grad(expected_output, tensors, g)

    weights = low_rank_weights(*tensors[1:], n_heads=n_heads)
    assert weights.scores.shape == (shape[4] + 1, n_heads * (shape[4] + 1))
    with torch.no_grad():
        output, backward = low_rank_attention_block(tensors[0], weights, NO_DROPOUT, 0)
        g_a, g_weights = backward(g)
    torch.testing.assert_close(output, expected_output, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(g_a, expected[0], rtol=1e-10, atol=1e-10)
    through = torch.autograd.grad(weights, tensors[1:], g_weights)
    for actual_grad, expected_grad in zip(through, expected[1:], strict=True):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_backward_pass_with_dropout_equals_autograd(rate: float) -> None:
    shape = SHAPES[1]
    a, *rest = parameters(shape, torch.float64)
    weights = LowRankWeights(*(w.detach().requires_grad_() for w in low_rank_weights(*rest, n_heads=shape[2])))
    masks = Masks(rate, torch.tensor(3), torch.tensor(4))
    y, backward = low_rank_attention_block(a, weights, masks, 2)
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, [a, *weights], g)
    g_a, g_weights = backward(g)
    for actual_grad, expected_grad in zip([g_a, *g_weights], expected, strict=True):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parity
def test_float32_error_is_within_the_rounding_bound() -> None:
    shape = (4, 169, 8, 208, 3)
    exact, fp32_tensors = ([x.detach() for x in parameters(shape, dtype)] for dtype in (torch.float64, torch.float32))
    actual, _ = low_rank_attention_block(fp32_tensors[0], low_rank_weights(*fp32_tensors[1:], n_heads=8), NO_DROPOUT, 0)
    assert_right_up_to_rounding(
        [actual], [plain(8, *exact)], lambda tensors: [plain(8, *tensors)], fp32_tensors, torch.float32
    )


def test_weights_of_nn_modules_give_the_same_result() -> None:
    """The parameters of `low_rank_weights` are the weights of `nn` modules."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True).double()
    projection, norm = nn.Linear(3, 12).double(), nn.LayerNorm(12).double()
    a = torch.randn(2, 7, 3, dtype=torch.float64)
    t = projection(a)
    expected = norm(t + attention(t, t, t)[0])
    assert attention.in_proj_weight is not None
    weights = low_rank_weights(
        projection.weight, projection.bias, attention.in_proj_weight, attention.in_proj_bias,
        attention.out_proj.weight, attention.out_proj.bias, norm.weight, norm.bias, n_heads=3,
    )  # fmt: skip
    actual, _ = low_rank_attention_block(a, weights, NO_DROPOUT, 0)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
