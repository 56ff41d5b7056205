"""Memory inside our custom operators, and equality of counts with few and with all chunks."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from pgat_fast.plan import operators
from pgat_fast.plan.fake_cache import without_data
from pgat_fast.plan.operators import implementation
from pgat_fast.plan.trace import LiveBytes, tensors_in
from pgat_kernels.ops.aspects import aspects, aspects_backward
from pgat_kernels.ops.attention import attention
from pgat_kernels.ops.chunked_ops import RowsOperator
from pgat_kernels.ops.combiner_batched import batched_combiner
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.gru import gru_bank
from pgat_kernels.ops.registration import Backward


@pytest.fixture(autouse=True)
def tensors_without_data() -> Iterator[None]:
    operators.prepare()
    with without_data():
        yield


Bytes = tuple[int, int, int]
"""Peak bytes: of all storages, of small ones, of large ones."""


def peaks_and_size(call: Callable[[], Any], *, shortened: bool) -> tuple[Bytes, int]:
    """Return the peaks of `call`, which calls one operator, and the bytes of its result."""
    live = LiveBytes()
    with pytest.MonkeyPatch.context() as patch:
        if not shortened:
            patch.setattr("pgat_fast.plan.trace.few_chunks", nullcontext)
        with live:
            result = call()
    size = sum(tensor.untyped_storage().nbytes() for tensor in tensors_in(result))
    assert live.all.live == size
    return (live.all.peak, live.all.peak_small, live.all.peak_large), size


def double(rows: list[Tensor], weights: list[Tensor], masks: Masks, options: Any) -> tuple[Tensor, Backward]:
    """Return a result and its backward function; a float32 chunk [c, 100] takes 800 c bytes, half for the result."""
    y = rows[0] * 2
    return y + y, lambda g: ([g * 4], [])


def test_peak_of_a_rows_operator_is_one_chunk_plus_the_result() -> None:
    operator = RowsOperator("twice_for_a_test", double, lambda rows: torch.empty_like(rows[0]), lambda w, *_: w)
    x, seed = torch.empty(1000, 100), torch.zeros((), dtype=torch.int64)
    peaks, result = peaks_and_size(lambda: operator([x], [], seed, 0.0, [], 10, torch.float32, False), shortened=True)
    assert result == 1000 * 400
    # The result of the previous chunk and the number of the chunk's first row also exist.
    assert peaks[0] - result == 3 * 10 * 400 + 8


@pytest.mark.parametrize("timesteps", [1, 7, *(pytest.param(many, marks=pytest.mark.slow) for many in (5, 20, 22))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_combiner_peaks_from_few_chunks_are_exact(timesteps: int, dtype: torch.dtype) -> None:
    from pgat_fast.model.optimized.combiner_batched import FastBatchedCombiner
    from tests.pgat_fast.model.variants import config_of

    config = config_of("batched").model
    combiner = FastBatchedCombiner(config.embed_dim, config.n_heads, 2, 0.1)
    weights = [weight.detach() for weight in combiner.weights().flat()]
    edges, seed = torch.empty(timesteps, 169, 3), torch.zeros((), dtype=torch.int64)
    common = (weights, seed, 0.1, [config.n_heads, 0], 5, dtype, False)
    calls = [
        lambda: batched_combiner.operator([edges], *common),
        lambda: batched_combiner.backward_operator(edges.new_empty(timesteps, 169), [edges], *common),
    ]
    for call in calls:
        assert peaks_and_size(call, shortened=True) == peaks_and_size(call, shortened=False)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("groups", "queries"), [(9, 20), *(pytest.param(many, 700, marks=pytest.mark.slow) for many in (3, 9))]
)
def test_attention_peaks_from_few_chunks_are_exact(groups: int, queries: int, masked: bool) -> None:
    width, seed = 16, torch.zeros((), dtype=torch.int64)
    x, weight, bias = torch.empty(groups, queries, width), torch.empty(3 * width, width), torch.empty(3 * width)
    scores = torch.empty(groups, queries, queries) if masked else None
    g = torch.empty(groups, queries, width)
    options = (0.1, 4, torch.float32, False)
    operator = torch.ops.pgat.attention
    calls = [
        lambda: attention(x, x, weight, bias, scores, n_heads=4, seed=seed, rate=0.1),
        lambda: torch.ops.pgat.attention_backward(g, x, x, weight, bias, scores, seed, *options),
    ]
    assert implementation(operator.default) is not None
    for call in calls:
        assert peaks_and_size(call, shortened=True) == peaks_and_size(call, shortened=False)


def test_operators_without_chunks_are_counted_completely() -> None:
    x, w = torch.empty(2, 9, 13, 32), torch.empty(13, 96, 32)
    b = torch.empty(13, 96)
    peaks, result = peaks_and_size(lambda: gru_bank(x, w, w, b, b, torch.float32), shortened=True)
    assert peaks == peaks_and_size(lambda: gru_bank(x, w, w, b, b, torch.float32), shortened=False)[0]
    # The inputs by group, all gates of all steps, and the states.
    assert peaks[0] > 3 * x.nbytes + result


def test_aspects_peaks_from_few_chunks_are_exact() -> None:
    x, constants, weight, bias = torch.empty(700, 64), torch.empty(78, 64), torch.empty(64), torch.empty(1)
    calls = [
        lambda: aspects(x, constants, weight, bias),
        lambda: aspects_backward(torch.empty(700, 13, 13), x, constants, weight, torch.empty(700, 13, 13)),
    ]
    for call in calls:
        assert peaks_and_size(call, shortened=True) == peaks_and_size(call, shortened=False)


def test_implementation_of_torch_operators_is_none() -> None:
    assert implementation(torch.ops.aten.add.Tensor) is None
    assert implementation(torch.ops.pgat.gru_bank_backward.default) is not None
