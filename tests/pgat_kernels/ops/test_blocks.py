"""Tests of the block operators, computed in plain torch, and of blocks built from them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pgat_kernels.ops import blocks
from pgat_kernels.ops.block_operators import BlockOperator
from pgat_kernels.ops.blocks import edge_head_operator, feed_forward_operator, projection_operator
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.edge_tokens import EdgeTransform, edge_tokens, edge_tokens_operator
from pgat_kernels.ops.low_rank_attention import LowRankWeights
from pgat_kernels.ops.plain_blocks import AttentionWeights, FeedForwardWeights, OutputWeights
from tests.pgat_kernels.gradients import flat

G, T, D, H, F = 3, 5, 8, 2, 12
MASKS = Masks(0.3, torch.tensor(11), torch.tensor(2))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def attention_weights() -> AttentionWeights:
    return AttentionWeights(randn(3 * D, D), randn(3 * D), randn(D, D), randn(D), randn(D), randn(D))


def feed_forward_weights() -> FeedForwardWeights:
    return FeedForwardWeights(randn(F, D), randn(F), randn(D, F), randn(D), randn(D), randn(D))


def low_rank_weights() -> LowRankWeights:
    return LowRankWeights(randn(D, 4), randn(4, H * 4), randn(D, H * 4), randn(D), randn(D), randn(D))


def output_weights() -> OutputWeights:
    return OutputWeights(randn(F, D), randn(F), randn(1, F), randn(1))


def transforms() -> tuple[EdgeTransform, ...]:
    sizes = (3, 1), (3,), (5, 3), (5,), (D, 5), (D,), (D,), (D,)
    return tuple(EdgeTransform(*[randn(*size) for size in sizes]) for _ in range(3))


BLOCKS: dict[str, Callable[[bool], Any]] = {
    "attention": lambda kernels: blocks.attention_block(
        randn(G, T, D), attention_weights(), H, MASKS, 1, randn(G, T, T), kernels=kernels
    ),
    "feed-forward": lambda kernels: blocks.feed_forward_block(
        randn(G, T, D), feed_forward_weights(), MASKS, 1, kernels=kernels
    ),
    "low rank": lambda kernels: blocks.low_rank_attention_block(
        randn(G, T, 3), low_rank_weights(), MASKS, 1, kernels=kernels
    ),
    "output head": lambda kernels: blocks.output_head(randn(G, T, D), output_weights(), MASKS, 1, kernels=kernels),
    "edge tokens": lambda kernels: edge_tokens(randn(G, T, T, 3), transforms(), kernels=kernels),
}


def computed(name: str, kernels: bool) -> list[Tensor]:
    """Return the result and the gradients for fixed inputs and weights."""
    torch.manual_seed(3)
    y, back = BLOCKS[name](kernels)
    return [y, *flat(back(randn(*y.shape)))]


@pytest.mark.parametrize("name", BLOCKS)
def test_operators_equal_plain_blocks_with_the_same_dropout(name: str) -> None:
    for actual, expected in zip(computed(name, True), computed(name, False), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


OPERATORS: dict[str, tuple[BlockOperator, Callable[[], tuple[list[Tensor], list[Tensor]]]]] = {
    "feed_forward_block": (feed_forward_operator, lambda: ([randn(G, T, D)], list(feed_forward_weights()))),
    "projection_block": (
        projection_operator,
        lambda: ([randn(G, T, D), randn(G, T, F)], [randn(D, 0), randn(D, F), randn(D), randn(D), randn(D)]),
    ),
    "projection_block, low rank": (
        projection_operator,
        lambda: ([randn(G, T, 4), randn(G, T, F)], [randn(D, 4), randn(D, F), randn(D), randn(D), randn(D)]),
    ),
    "edge_head": (edge_head_operator, lambda: ([randn(G, T, D)], list(output_weights()))),
    "edge_tokens": (
        edge_tokens_operator,
        lambda: ([randn(G, T, T, 3)], [torch.stack(parts) for parts in zip(*transforms(), strict=True)]),
    ),
}


def leaves(name: str) -> tuple[BlockOperator, list[Tensor], list[Tensor]]:
    operator, inputs = OPERATORS[name]
    rows, weights = ([x.requires_grad_() for x in tensors] for tensors in inputs())
    return operator, rows, weights


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_pass_gradcheck(name: str) -> None:
    operator, rows, weights = leaves(name)

    def function(*tensors: Tensor) -> Any:
        row_tensors, weight_tensors = list(tensors[: len(rows)]), list(tensors[len(rows) :])
        return operator.operator(row_tensors, weight_tensors, MASKS.seed, MASKS.first_row, 1, 0.3)

    assert torch.autograd.gradcheck(function, (*rows, *weights), fast_mode=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_pass_opcheck(name: str) -> None:
    operator, rows, weights = leaves(name)
    options = MASKS.seed, MASKS.first_row, 1, 0.3
    torch.library.opcheck(operator.operator, (rows, weights, *options))
    detached_rows, detached_weights = ([x.detach() for x in tensors] for tensors in (rows, weights))
    g = torch.ones_like(operator.operator(detached_rows, detached_weights, *options))
    torch.library.opcheck(operator.backward_operator, (g, detached_rows, detached_weights, *options))


@pytest.mark.compile
@pytest.mark.parametrize("name", OPERATORS)
def test_compiled_gradients_equal_eager_gradients(name: str) -> None:
    operator, rows, weights = leaves(name)

    def function(rows: list[Tensor], weights: list[Tensor]) -> Tensor:
        y: Tensor = operator.operator(rows, weights, MASKS.seed, MASKS.first_row, 1, 0.3)
        return (y * y).sum()

    inputs = [*rows, *weights]
    eager = torch.autograd.grad(function(rows, weights), inputs)
    compiled = torch.autograd.grad(torch.compile(function, fullgraph=True)(rows, weights), inputs)
    for actual, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
def test_flops_equal_those_of_plain_torch(name: str) -> None:
    operator, rows, weights = leaves(name)
    with FlopCounterMode(display=False) as counted:
        y, back = operator(rows, weights, MASKS, 1)
        back(torch.ones_like(y))
    with FlopCounterMode(display=False) as plain:
        operator.plain(rows, weights, MASKS, 1)
        y, back = operator.plain(rows, weights, MASKS, 1)
        back(torch.ones_like(y))
    assert counted.get_total_flops() == plain.get_total_flops() > 0


def test_16_bit_products_give_float32_gradients_of_weights() -> None:
    operator, rows, weights = leaves("feed_forward_block")
    fp32_rows, cast_weights = [rows[0].detach().float()], [w.detach().to(torch.bfloat16) for w in weights[:4]]
    cast_weights += [w.detach().float() for w in weights[4:]]
    y, back = operator(fp32_rows, cast_weights, MASKS, 1)
    (g_t,), g_weights = back(torch.ones_like(y))
    assert y.dtype == g_t.dtype == torch.float32
    assert {g.dtype for g in g_weights} == {torch.float32}
