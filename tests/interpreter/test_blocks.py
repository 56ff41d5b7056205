"""Tests of the interpreted kernels of the combiner's blocks, compared with plain torch in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pgat_kernels.instrumentation import record_launches
from pgat_kernels.ops.aspects import aspects
from pgat_kernels.ops.block_operators import BlockOperator
from pgat_kernels.ops.blocks import edge_head_operator, feed_forward_operator, projection_operator
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.edge_tokens import edge_tokens_operator
from pgat_kernels.triton import launch
from pgat_kernels.tuning_table import Configuration
from tests.combinations import pairwise_each_value_first
from tests.rounding import assert_right_up_to_rounding

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("poisoned")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def generator_of(*sizes: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return lambda *shape: torch.randn(shape, generator=generator)


Inputs = tuple[list[Tensor], list[Tensor]]


def norm(width: int, randn: Callable[..., Tensor]) -> list[Tensor]:
    return [1 + randn(width) / 4, randn(width)]


def layer(rows: int, columns: int, randn: Callable[..., Tensor]) -> list[Tensor]:
    return [randn(rows, columns) / columns**0.5, randn(rows) / 4]


def feed_forward(groups: int, tokens: int, width: int, hidden: int) -> Inputs:
    randn = generator_of(groups, tokens, width, hidden)
    weights = [*layer(hidden, width, randn), *layer(width, hidden, randn), *norm(width, randn)]
    return [randn(groups, tokens, width)], weights


def projection(groups: int, tokens: int, width: int, inner: int, rank: int) -> Inputs:
    randn = generator_of(groups, tokens, width, inner)
    rows = [randn(groups, tokens, rank or width), randn(groups, tokens, inner)]
    return rows, [randn(width, rank), *layer(width, inner, randn), *norm(width, randn)]


def edge_head(groups: int, tokens: int, width: int, hidden: int) -> Inputs:
    randn = generator_of(groups, tokens, width, hidden)
    return [randn(groups, tokens, width)], [*layer(hidden, width, randn), *layer(1, hidden, randn)]


def edge_tokens(steps: int, nodes: int, first: int, second: int, width: int) -> Inputs:
    randn = generator_of(steps, nodes, first)
    kinds = [
        [*layer(first, 1, randn), *layer(second, first, randn), *layer(width, second, randn), *norm(width, randn)]
        for _ in range(3)
    ]
    return [randn(steps, nodes, nodes, 3)], [torch.stack(parts) for parts in zip(*kinds, strict=True)]


# Operator, indices of weights that stay float32, inputs. Tiles have 16 rows in float32 and 32 in 16 bits: the cases
# have one or several tiles, full and partial ones, and few columns: the interpreter's time grows with the number of
# products. PRODUCTION has those of production.
CASES: list[tuple[BlockOperator, tuple[int, ...], Inputs]] = [
    (feed_forward_operator, (4, 5), feed_forward(3, 7, 100, 40)),
    (feed_forward_operator, (4, 5), feed_forward(1, 1, 16, 33)),
    (feed_forward_operator, (4, 5), feed_forward(2, 13, 52, 40)),
    (feed_forward_operator, (4, 5), feed_forward(1, 5, 256, 16)),
    (feed_forward_operator, (4, 5), feed_forward(70, 1, 5, 7)),
    (projection_operator, (0, 3, 4), projection(3, 7, 208, 208, 0)),
    (projection_operator, (0, 3, 4), projection(1, 53, 32, 48, 0)),
    (projection_operator, (0, 3, 4), projection(3, 13, 208, 32, 4)),
    (projection_operator, (0, 3, 4), projection(1, 1, 7, 256, 2)),
    (edge_head_operator, (), edge_head(3, 7, 208, 104)),
    (edge_head_operator, (), edge_head(1, 1, 5, 1)),
    (edge_head_operator, (), edge_head(70, 1, 32, 16)),
    (edge_tokens_operator, (0, 1, 6, 7), edge_tokens(2, 3, 20, 24, 100)),
    (edge_tokens_operator, (0, 1, 6, 7), edge_tokens(1, 5, 4, 8, 16)),
    (edge_tokens_operator, (0, 1, 6, 7), edge_tokens(3, 1, 7, 35, 33)),
]
IDS = [
    f"{operator.name}-{'x'.join(map(str, [*inputs[0][0].shape, *inputs[1][0].shape]))}" for operator, _, inputs in CASES
]


PRODUCTION: list[tuple[BlockOperator, tuple[int, ...], Inputs]] = [
    (feed_forward_operator, (4, 5), feed_forward(1, 39, 208, 832)),
    (projection_operator, (0, 3, 4), projection(1, 39, 208, 208, 0)),
    (projection_operator, (0, 3, 4), projection(1, 39, 208, 32, 4)),
    (edge_head_operator, (), edge_head(1, 39, 208, 104)),
    (edge_tokens_operator, (0, 1, 6, 7), edge_tokens(1, 5, 52, 104, 208)),
]
"""Cases with the columns and hidden layers of production."""


def name_of(value: object) -> str:
    """Return the id of a parameter; an integer is the index of a case."""
    return IDS[value] if isinstance(value, int) else str(value)


def gradient_of(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(y.numel())
    return torch.randn(y.shape, generator=generator).to(y.dtype)


def tensors_of(operator: BlockOperator, wide: tuple[int, ...], inputs: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """Return rows and weights: those of products in `dtype`, others in float32, or float64 if `dtype` is float64."""
    other_dtype = torch.promote_types(dtype, torch.float32)
    rows = [x.to(other_dtype) for x in inputs[0]]
    if operator is projection_operator:
        rows[1] = inputs[0][1].to(dtype)
    return [*rows, *(w.to(other_dtype if i in wide else dtype) for i, w in enumerate(inputs[1]))]


def of_block(operator: BlockOperator, tensors: list[Tensor], count: int, rate: float, plain: bool) -> list[Tensor]:
    """Return the result and the gradients of `tensors`, the first `count` of which are rows, the others weights."""
    masks = Masks(rate, torch.tensor(11), torch.tensor(5))
    run = operator.plain if plain else operator
    y, back = run(tensors[:count], tensors[count:], masks, 3)
    g_rows, g_weights = back(gradient_of(y))
    return [y, *g_rows, *g_weights]


def computed(
    operator: BlockOperator, wide: tuple[int, ...], inputs: Inputs, dtype: torch.dtype, rate: float, plain: bool
) -> list[Tensor]:
    """Return the result and the gradients, with products in `dtype`."""
    return of_block(operator, tensors_of(operator, wide, inputs, dtype), len(inputs[0]), rate, plain)


@pytest.mark.parametrize(
    ("case", "rate", "dtype"),
    pairwise_each_value_first(range(len(CASES)), [0.0, 0.25], DTYPES),
    ids=name_of,
)
def test_results_and_gradients_are_within_the_rounding_bound(case: int, rate: float, dtype: torch.dtype) -> None:
    check(*CASES[case], rate, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("case", PRODUCTION, ids=lambda case: case[0].name)
def test_sizes_of_production_are_within_the_rounding_bound(
    case: tuple[BlockOperator, tuple[int, ...], Inputs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles have more columns than those of the table, whose products the interpreter would compute in minutes."""
    monkeypatch.setattr(launch, "configuration", lambda *request: Configuration(32, 4, 1, columns=256))
    monkeypatch.setattr(launch, "CHUNK", 256)
    check(*case, 0.25, torch.float32)


def check(
    operator: BlockOperator, fp32_indices: tuple[int, ...], inputs: Inputs, rate: float, dtype: torch.dtype
) -> None:
    """Check that results and gradients of one launch each are within the rounding bound."""
    with record_launches() as launches:
        computed(operator, fp32_indices, inputs, dtype, rate, plain=False)
    assert len(launches) == 2
    assert_right_up_to_rounding(
        computed(operator, fp32_indices, inputs, dtype, rate, plain=False),
        computed(operator, fp32_indices, inputs, torch.float64, rate, plain=True),
        lambda tensors: of_block(operator, tensors, len(inputs[0]), rate, plain=True),
        tensors_of(operator, fp32_indices, inputs, dtype),
        dtype,
    )


@pytest.mark.parametrize(
    ("case", "dtype"),
    pairwise_each_value_first([2, 6, 11, 13], DTYPES),
    ids=name_of,
)
def test_results_do_not_depend_on_program_order(
    case: int, dtype: torch.dtype, reversed_grid: Callable[[], None]
) -> None:
    operator, fp32_indices, inputs = CASES[case]
    forwards = computed(operator, fp32_indices, inputs, dtype, 0.25, plain=False)
    reversed_grid()
    backwards = computed(operator, fp32_indices, inputs, dtype, 0.25, plain=False)
    assert all(torch.equal(a, b) for a, b in zip(backwards, forwards, strict=True))


def test_unsupported_inputs_launch_no_kernel() -> None:
    with record_launches() as launches:
        computed(feed_forward_operator, (4, 5), feed_forward(1, 2, 257, 16), torch.float32, 0.0, plain=False)
        computed(feed_forward_operator, (4, 5), feed_forward(1, 2, 16, 16), torch.float64, 0.0, plain=False)
        computed(projection_operator, (0, 3, 4), projection(1, 2, 16, 257, 0), torch.float32, 0.0, plain=False)
        computed(edge_head_operator, (), edge_head(1, 2, 16, 257), torch.float32, 0.0, plain=False)
    assert launches == []


# --- aspects ----------------------------------------------------------------------------------------------------------


def tensors_of_aspects(shape: tuple[int, int, int]) -> list[Tensor]:
    timesteps, nodes, width = shape
    randn = generator_of(*shape)
    pairs = nodes * (nodes - 1) // 2
    return [randn(timesteps, width), randn(pairs, width), randn(width) / width**0.5, randn(1)]


def of_aspects(tensors: list[Tensor], kernels: bool) -> list[Tensor]:
    """Return strengths and gradients."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    y: Any = aspects(*leaves, kernels)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient_of(y))]


@pytest.mark.parametrize("shape", [(3, 13, 208), (1, 2, 1), (35, 5, 33), (33, 16, 64)], ids=str)
def test_aspects_are_within_the_rounding_bound(shape: tuple[int, int, int]) -> None:
    tensors = tensors_of_aspects(shape)
    exact = of_aspects([x.double() for x in tensors], kernels=False)
    assert_right_up_to_rounding(
        of_aspects(tensors, kernels=True), exact, lambda x: of_aspects(x, kernels=False), tensors, torch.float32
    )


def test_aspects_do_not_depend_on_program_order(reversed_grid: Callable[[], None]) -> None:
    tensors = tensors_of_aspects((35, 5, 33))
    forwards = of_aspects(tensors, kernels=True)
    reversed_grid()
    assert all(torch.equal(a, b) for a, b in zip(of_aspects(tensors, kernels=True), forwards, strict=True))


def test_aspects_take_two_launches_up_to_16_bodies() -> None:
    with record_launches() as launches:
        of_aspects(tensors_of_aspects((3, 13, 16)), kernels=True)
        of_aspects(tensors_of_aspects((3, 17, 16)), kernels=True)
    assert [launch.kernel.__name__ for launch in launches] == ["_aspects_fwd_kernel", "_aspects_bwd_kernel"]
