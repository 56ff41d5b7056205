"""Tests of graph attention in plain torch, its argument checks, and the operator."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pgat_kernels.ops.dropout import Dropout
from pgat_kernels.ops.graph_attention import graph_attention

THRESHOLD = 0.3


def inputs(nodes: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(nodes)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k, v = (randn(3, 2, nodes, 5).to(dtype).requires_grad_() for _ in range(3))
    adjacency, bias = randn(3, nodes, nodes), randn(3, nodes, nodes)
    adjacency[0] = 0.0
    return q, k, v, adjacency.float(), bias.to(torch.promote_types(dtype, torch.float32)).requires_grad_()


def dropout(rate: float) -> Dropout:
    return Dropout(rate, torch.tensor(3), 1, torch.tensor(2))


@pytest.mark.parametrize("nodes", [1, 7, 64, 65])
def test_outputs_and_gradients_equal_those_of_torch(nodes: int) -> None:
    q, k, v, adjacency, bias = inputs(nodes)
    hidden = (adjacency.abs() <= THRESHOLD) & ~torch.eye(nodes, dtype=torch.bool)
    mask = bias.masked_fill(hidden, float("-inf"))[:, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    actual = graph_attention(q, k, v, adjacency, bias, threshold=THRESHOLD)
    do = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    for actual_grad, expected_grad in zip(
        torch.autograd.grad(actual, [q, k, v, bias], do),
        torch.autograd.grad(expected, [q, k, v, bias], do),
        strict=True,
    ):
        torch.testing.assert_close(actual_grad, expected_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("nodes", [7, 65])
def test_gradients_with_dropout_pass_gradcheck(nodes: int) -> None:
    q, k, v, adjacency, bias = inputs(nodes)

    def function(*leaves: Tensor) -> Tensor:
        return graph_attention(*leaves[:3], adjacency, leaves[3], threshold=THRESHOLD, dropout=dropout(0.3))

    assert torch.autograd.gradcheck(function, (q, k, v, bias), fast_mode=True)


def test_dropout_keeps_the_expectation() -> None:
    q, k, v, *_ = inputs()
    seeds, copies = 20, 100
    repeated = [x.repeat(copies, 1, 1, 1) for x in (q, k, v)]
    outputs = [
        graph_attention(*repeated, dropout=Dropout(0.5, torch.tensor(seed), 0, torch.tensor(0)))
        for seed in range(seeds)
    ]
    mean = torch.stack(outputs).unflatten(1, (copies, len(q))).mean(dim=(0, 1))
    torch.testing.assert_close(mean, graph_attention(q, k, v), rtol=0, atol=0.1)


@pytest.mark.parametrize("nodes", [7, 65])
def test_operator_passes_opcheck(nodes: int) -> None:
    q, k, v, adjacency, bias = inputs(nodes, torch.float32)
    options = (torch.tensor(3), torch.tensor(0), 0, 0.2, THRESHOLD, 0.4)
    torch.library.opcheck(torch.ops.pgat.graph_attention, (q, k, v, adjacency, bias, *options))
    torch.library.opcheck(torch.ops.pgat.graph_attention, (q, k, v, None, None, *options))


@pytest.mark.compile
@pytest.mark.parametrize("nodes", [7, 65])
def test_compiled_results_equal_eager_results(nodes: int) -> None:
    q, k, v, adjacency, bias = inputs(nodes, torch.float32)

    def computed(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        # The second call takes one tensor as query, key and value.
        first = graph_attention(q, k, v, adjacency, bias, threshold=THRESHOLD, dropout=dropout(0.2))
        return graph_attention(first, first, first).square()

    leaves = [q, k, v, bias]
    compiled = torch.compile(computed, fullgraph=True, dynamic=False)
    for actual, expected in zip(
        (y := compiled(*leaves), *torch.autograd.grad(y.sum(), leaves)),
        (z := computed(*leaves), *torch.autograd.grad(z.sum(), leaves)),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_flops_are_two_products_forward_and_five_backward() -> None:
    q, k, v, *_ = inputs(dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        y = graph_attention(q, k, v)
        product = 2 * 3 * 2 * 7 * 7 * 5
        assert counter.get_total_flops() == 2 * product
        y.sum().backward()
        assert counter.get_total_flops() == 7 * product


def test_invalid_inputs_raise_with_a_message() -> None:
    q, k, v, adjacency, bias = inputs(dtype=torch.float32)
    large = torch.zeros(1, 1, 513, 4)
    deep = torch.zeros(1, 1, 3, 65)
    for call, message in (
        (lambda: graph_attention(q[0], k, v), r"must be \[G, H, T, d\]"),
        (lambda: graph_attention(q, k[:1], v), r"all three alike, not \[3, 2, 7, 5\], \[1, 2, 7, 5\]"),
        (lambda: graph_attention(large, large, large), "513 nodes"),
        (lambda: graph_attention(deep, deep, deep), "head dimension 65"),
        (lambda: graph_attention(q, k.double(), v), "one floating dtype"),
        (lambda: graph_attention(q, k, v, adjacency[:, :3]), r"adjacency must be \[3, 7, 7\]"),
        (lambda: graph_attention(q, k, v, None, bias[0]), r"bias must be \[3, 7, 7\]"),
        (lambda: graph_attention(q, k, v, None, bias.half()), "bias must be at least float32"),
        (lambda: graph_attention(q, k, v.to("meta")), "on one device, not on cpu and meta"),
        (lambda: graph_attention(q, k, v, dropout=dropout(1.0)), "rate is 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
