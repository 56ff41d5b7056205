"""Tests that forward passes which return their backward pass have the gradients of torch's autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pgat_kernels.ops import blocks, plain_blocks, vjp
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.plain_blocks import AttentionWeights, FeedForwardWeights, OutputWeights
from tests.pgat_kernels.gradients import flat

ROW = torch.tensor(2)
G, T, D, H, F = 3, 5, 8, 2, 12


def masks(rate: float) -> Masks:
    return Masks(rate, torch.tensor(11), ROW)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def attention_weights() -> AttentionWeights:
    return AttentionWeights(randn(3 * D, D), randn(3 * D), randn(D, D), randn(D), randn(D), randn(D))


def feed_forward_weights() -> FeedForwardWeights:
    return FeedForwardWeights(randn(F, D), randn(F), randn(D, F), randn(D), randn(D), randn(D))


CASES: dict[str, tuple[Callable[..., Any], Callable[[], list[Any]]]] = {
    "linear": (lambda rate, x, w, b: vjp.linear(x, w, b), lambda: [randn(G, D), randn(F, D), randn(F)]),
    "gelu": (lambda rate, x: vjp.gelu(x), lambda: [randn(G, D)]),
    "layer_norm": (lambda rate, x, w, b: vjp.layer_norm(x, w, b), lambda: [randn(G, D), randn(D), randn(D)]),
    "softmax_dropout": (
        lambda rate, x: vjp.softmax_dropout(x, torch.float64, masks(rate), 1),
        lambda: [randn(G, H, T, T)],
    ),
    "sigmoid": (lambda rate, x: vjp.sigmoid(x, torch.float64), lambda: [randn(G, D)]),
    "mlp": (
        lambda rate, x, *w: vjp.mlp(x, list(zip(w[::2], w[1::2], strict=True))),
        lambda: [randn(G, 2), randn(4, 2), randn(4), randn(F, 4), randn(F), randn(D, F), randn(D)],
    ),
    "attention_block": (
        lambda rate, x, w: plain_blocks.attention_block(x, w, H, masks(rate), 0),
        lambda: [randn(G, T, D), attention_weights()],
    ),
    "attention_block, bias": (
        lambda rate, x, w, bias: plain_blocks.attention_block(x, w, H, masks(rate), 0, bias),
        lambda: [randn(G, T, D), attention_weights(), randn(G, T, T)],
    ),
    "attention_block, kernel": (
        lambda rate, x, w, bias: blocks.attention_block(x, w, H, masks(rate), 0, bias, kernels=True),
        lambda: [randn(G, T, D), attention_weights(), randn(G, T, T)],
    ),
    "feed_forward_block": (
        lambda rate, x, w: plain_blocks.feed_forward_block(x, w, masks(rate), 4),
        lambda: [randn(G, T, D), feed_forward_weights()],
    ),
    "output_head": (
        lambda rate, x, w: plain_blocks.output_head(x, w, masks(rate), 2),
        lambda: [randn(G, T, D), OutputWeights(randn(F, D), randn(F), randn(1, F), randn(1))],
    ),
}


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_those_of_autograd(name: str, rate: float) -> None:
    torch.manual_seed(5)
    function, make = CASES[name]
    arguments = make()
    y, backward = function(rate, *arguments)
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, flat(arguments), g)
    for actual_grad, expected_grad in zip(flat(backward(g)), expected, strict=True):
        torch.testing.assert_close(actual_grad, expected_grad.view_as(actual_grad), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in CASES if "block" in name or name == "output_head"])
def test_bfloat16_products_give_float32_results_and_gradients(name: str) -> None:
    torch.manual_seed(6)
    function, make = CASES[name]
    arguments = [
        tuple.__new__(type(a), [t.detach().float() for t in a]) if isinstance(a, tuple) else a.detach().float()
        for a in make()
    ]
    fp32_result, _ = function(0.0, *arguments)
    bf16_arguments = [
        type(a)._make(t.bfloat16() if t.dim() > 1 else t for t in a) if isinstance(a, tuple) else a for a in arguments
    ]
    y, backward = function(0.0, *bf16_arguments)
    assert y.dtype == torch.float32
    assert all(t.dtype == torch.float32 for t in flat(backward(torch.randn_like(y))))
    assert float((y - fp32_result).norm() / fp32_result.norm()) < 0.03


@pytest.mark.parametrize("biased", [False, True])
def test_attention_operator_equals_plain_attention_with_the_same_dropout(biased: bool) -> None:
    torch.manual_seed(7)
    x, w, bias = randn(G, T, D).detach(), attention_weights(), randn(G, T, T).detach() if biased else None
    results = []
    for kernels in (False, True):
        y, backward = blocks.attention_block(x, w, H, masks(0.4), 0, bias, kernels=kernels)
        results.append([y, *flat(backward(torch.ones_like(y)))])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
