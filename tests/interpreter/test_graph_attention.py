"""Tests of the interpreted attention kernels, compared with plain torch in float64 and between launches."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pgat_kernels.dispatch import kernels_run_on
from pgat_kernels.instrumentation import record_launches
from pgat_kernels.ops import graph_attention as operator
from pgat_kernels.ops.dropout import Dropout
from pgat_kernels.ops.graph_attention import graph_attention, plain_backward, plain_forward
from pgat_kernels.ops.graph_inputs import GraphInputs
from tests.combinations import pairwise_each_value_first
from tests.rounding import assert_right_up_to_rounding

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("poisoned")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
THRESHOLD = 0.3

# graphs, heads, nodes, head dimension
SMALL = [(9, 2, 13, 26), (1, 8, 13, 16), (3, 1, 39, 26), (13, 1, 13, 5), (2, 1, 64, 64), (5, 2, 1, 1), (2, 3, 7, 33)]
TILED = [(1, 2, 97, 26), (2, 1, 65, 16), (1, 1, 127, 7)]
LARGEST = [(1, 1, 512, 64)]


def test_interpreted_kernels_run_on_cpu_in_supported_dtypes() -> None:
    assert kernels_run_on(torch.device("cpu"), torch.bfloat16)
    assert not kernels_run_on(torch.device("cpu"), torch.float64)


class Case:
    """Random inputs of a call, and its results and gradients."""

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, masked: bool, biased: bool, rate: float
    ) -> None:
        graphs, _, nodes, _ = shape
        generator = torch.Generator().manual_seed(sum(shape))

        def randn(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        self.q, self.k, self.v, self.do = (randn(*shape).to(dtype) for _ in range(4))
        self.adjacency = randn(graphs, nodes, nodes) if masked else None
        if self.adjacency is not None:
            self.adjacency[0, :: max(1, nodes - 1)] = 0.0  # the first and the last node attend to themselves
        self.bias = randn(graphs, nodes, nodes) if biased else None
        self.dropout = Dropout(rate, torch.tensor(11), 3, torch.tensor(5))
        self.scale = shape[-1] ** -0.5

    def computed(self) -> list[Tensor]:
        """Return the result and the gradients computed by the operator."""
        leaves = [x.clone().requires_grad_() for x in (self.q, self.k, self.v)]
        bias = None if self.bias is None else self.bias.clone().requires_grad_()
        y = graph_attention(*leaves, self.adjacency, bias, threshold=THRESHOLD, dropout=self.dropout)
        inputs = leaves if bias is None else [*leaves, bias]
        return [y.detach(), *torch.autograd.grad(y, inputs, self.do)]

    def plain(self, dtype: torch.dtype) -> list[Tensor]:
        """Return the result and the gradients computed by plain torch in `dtype`."""
        bias_dtype = torch.promote_types(dtype, torch.float32)
        bias = [] if self.bias is None else [self.bias.to(bias_dtype)]
        return self.plainly([*(x.to(dtype) for x in (self.q, self.k, self.v, self.do)), *bias])

    def plainly(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return them for given queries, keys, values, gradient of the result, and bias, if there is one."""
        q, k, v, do, *bias = tensors
        options = self.adjacency, bias[0] if bias else None, self.dropout, THRESHOLD, self.scale
        inputs = GraphInputs(q, k, v, *options)
        return [plain_forward(inputs)[0], *plain_backward(do, inputs)]

    def check(self) -> None:
        """Check that the error relative to float64 is within the rounding bound."""
        actual, dtype = self.computed(), self.q.dtype
        inputs = [x for x in (self.q, self.k, self.v, self.do, self.bias) if x is not None]
        assert [x.dtype for x in actual] == [x.dtype for x in self.plain(dtype)]
        assert_right_up_to_rounding(actual, self.plain(torch.float64), self.plainly, inputs, dtype)


BOTH = [False, True]
"""Values of `masked` and `biased`."""


@pytest.mark.parametrize(
    ("shape", "masked", "biased", "rate", "dtype"),
    pairwise_each_value_first(SMALL, BOTH, BOTH, [0.0, 0.25], DTYPES),
    ids=str,
)
def test_small_graphs_are_within_the_rounding_bound(
    shape: tuple[int, int, int, int], masked: bool, biased: bool, rate: float, dtype: torch.dtype
) -> None:
    Case(shape, dtype, masked, biased, rate).check()


@pytest.mark.parametrize(
    ("shape", "masked", "biased", "rate", "dtype"),
    pairwise_each_value_first(TILED, BOTH, BOTH, [0.0, 0.1], DTYPES),
    ids=str,
)
def test_tiled_graphs_are_within_the_rounding_bound(
    shape: tuple[int, int, int, int], masked: bool, biased: bool, rate: float, dtype: torch.dtype
) -> None:
    Case(shape, dtype, masked, biased, rate).check()


@pytest.mark.usefixtures("large_tiles")  # 2 x 2 tiles: the 256 tiles of the table's configuration take half a minute
@pytest.mark.parametrize("shape", LARGEST, ids=str)
def test_largest_graph_is_within_the_rounding_bound(shape: tuple[int, int, int, int]) -> None:
    Case(shape, torch.float32, True, True, 0.1).check()


@pytest.mark.parametrize("shape", [SMALL[0], TILED[1]], ids=str)
def test_dropout_mask_equals_that_of_plain_torch(shape: tuple[int, int, int, int]) -> None:
    """The values are the identity, so that the result is the weights of the keys."""
    graphs, heads, nodes, _ = shape
    case = Case((graphs, heads, nodes, min(nodes, 64)), torch.float32, False, False, 0.4)
    case.v = torch.eye(nodes)[:, :64].expand(graphs, heads, nodes, -1)
    weights, expected = graph_attention(case.q, case.k, case.v, dropout=case.dropout), case.plain(torch.float64)[0]
    assert torch.equal(weights == 0, expected == 0)
    assert 0.3 < float((weights == 0).double().mean()) < 0.5


@pytest.mark.parametrize(("shape", "dtype"), pairwise_each_value_first([SMALL[0], (1, 1, 65, 16)], DTYPES), ids=str)
def test_results_do_not_depend_on_program_order(
    shape: tuple[int, int, int, int], dtype: torch.dtype, reversed_grid: Callable[[], None]
) -> None:
    case = Case(shape, dtype, True, True, 0.25)
    forwards = case.computed()
    reversed_grid()
    assert all(torch.equal(a, b) for a, b in zip(case.computed(), forwards, strict=True))


@pytest.mark.parametrize("nodes", [13, pytest.param(65, marks=pytest.mark.slow)])
def test_any_strides_and_one_tensor_for_all_inputs_are_supported(nodes: int) -> None:
    case = Case((2, 2, nodes, 26), torch.float32, False, False, 0.0)
    expected = graph_attention(case.q, case.k, case.v)
    side_by_side = torch.stack((case.q, case.k, case.v)).permute(1, 3, 0, 2, 4).contiguous()  # [G, T, 3, H, d]
    assert torch.equal(graph_attention(*side_by_side.permute(2, 0, 3, 1, 4)), expected)
    transposed = (x.transpose(2, 3).contiguous().transpose(2, 3) for x in (case.q, case.k, case.v))
    assert torch.equal(graph_attention(*transposed), expected)
    expanded = case.q[:1].expand(2, -1, -1, -1)
    # At another place in a tile, a product may add up its terms in another order.
    single = graph_attention(*[case.q[:1]] * 3)
    torch.testing.assert_close(graph_attention(expanded, expanded, expanded)[1], single[0], rtol=1e-5, atol=1e-6)

    x = case.q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(graph_attention(x, x, x), x, case.do)
    separate = [case.q.clone().requires_grad_() for _ in range(3)]
    parts = torch.autograd.grad(graph_attention(*separate), separate, case.do)
    torch.testing.assert_close(gradient, sum(parts))


def test_zero_graphs_give_an_empty_result() -> None:
    empty = torch.zeros(0, 2, 13, 26)
    assert graph_attention(empty, empty, empty).shape == empty.shape


def launched(nodes: int, biased: bool) -> Iterator[str]:
    case = Case((2, 2, nodes, 16), torch.float32, False, biased, 0.0)
    with record_launches() as launches:
        options = case.adjacency, case.bias, *case.dropout[1:2], case.dropout.first_row
        y = operator._graph_attention(case.q, case.k, case.v, *options, 0, 0.0, 0.0, 0.25)
        saved = y if nodes > operator.MOST_WHOLE else (None, None)
        operator._graph_attention_backward(case.do, case.q, case.k, case.v, *options, *saved, 0, 0.0, 0.0, 0.25)
    return (record.kernel.__name__ for record in launches)


def test_number_of_launches_depends_on_size_and_bias() -> None:
    assert len(list(launched(13, biased=False))) == 2
    assert len(list(launched(13, biased=True))) == 3
    assert len(list(launched(169, biased=False))) == 3
    assert len(list(launched(169, biased=True))) == 4
