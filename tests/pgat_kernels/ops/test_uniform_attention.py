"""Tests of attention over identical keys, with and without dropout on its weights."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from pgat_fast.model.reference.attention import IdenticalKeysAttention
from pgat_kernels.conditioning import ROUNDINGS
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.uniform_attention import dropped_weight_sums, uniform_attention
from tests.pgat_fast.model.by_hand import normal, randomize
from tests.rounding import assert_right_up_to_rounding

EXACT = 1e-10
SEED = torch.tensor(5)
ROW = torch.tensor(0)


def reference(width: int, n_heads: int, dropout: float) -> tuple[IdenticalKeysAttention, list[Tensor]]:
    """Return the reference attention, and its weights in the order of the operators' arguments."""
    attention = IdenticalKeysAttention(width, n_heads, dropout)
    randomize(attention)
    value, output = attention.value, attention.output
    return attention, [value.weight, value.bias, output.weight, output.bias]


def masks(rate: float) -> Masks:
    return Masks(rate, SEED, ROW)


@pytest.mark.parametrize(("groups", "width", "n_heads"), [(1, 4, 1), (3, 8, 2), (7, 16, 8)])
def test_result_without_dropout_is_the_value_path(groups: int, width: int, n_heads: int) -> None:
    attention, weights = reference(width, n_heads, 0.0)
    context = normal(groups, width).requires_grad_()
    expected = attention(context, queries=5, keys=7)
    upstream = normal(*expected.shape, seed=6)
    gradients = torch.autograd.grad(expected, [context, *weights], upstream)
    for heads, rate in ((n_heads, 0.0), (0, 0.3)):
        actual, back = uniform_attention(context, *weights, 5, 7, heads, masks(rate), 0)
        assert actual.shape == (groups, 1, width)
        assert torch.allclose(actual.expand_as(expected), expected, rtol=0, atol=EXACT)
        for actual_grad, expected_grad in zip(back(upstream), gradients, strict=True):
            assert torch.allclose(actual_grad, expected_grad, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("queries", "keys", "n_heads"), [(1, 1, 1), (5, 7, 2), (39, 39, 8)])
def test_dropout_scales_heads_by_the_sums_of_their_weights(queries: int, keys: int, n_heads: int) -> None:
    _, weights = reference(16, n_heads, 0.0)
    inputs = [normal(3, 16).requires_grad_(), *weights]
    actual, back = uniform_attention(*inputs, queries, keys, n_heads, masks(0.3), 2)
    sums = dropped_weight_sums(keys, (3, queries, n_heads), 0.3, SEED, 2).double()
    value = torch.nn.functional.linear(inputs[0], weights[0], weights[1])
    scaled = (sums[..., None] * value.view(3, 1, n_heads, -1)).flatten(2)
    expected = torch.nn.functional.linear(scaled, weights[2], weights[3])
    assert torch.allclose(actual, expected, rtol=0, atol=EXACT)
    upstream = normal(*expected.shape, seed=6)
    gradients = torch.autograd.grad(expected, inputs, upstream)
    for actual_grad, expected_grad in zip(back(upstream), gradients, strict=True):
        assert torch.allclose(actual_grad, expected_grad, rtol=0, atol=EXACT)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("keys", [1, 3, 39])
def test_number_of_kept_keys_is_binomial(keys: int, rate: float) -> None:
    draws = 400_000
    sums = dropped_weight_sums(keys, (draws, 1), rate, SEED, 0).double()
    kept = sums.flatten() * (keys * (1 - rate))
    assert torch.allclose(kept, kept.round(), rtol=0, atol=1e-5)  # float32 of at most 39
    counts = kept.round().long().bincount(minlength=keys + 1)
    assert len(counts) == keys + 1
    for n in range(keys + 1):
        expected = draws * math.comb(keys, n) * (1 - rate) ** n * rate ** (keys - n)
        assert abs(int(counts[n]) - expected) < 5 * expected**0.5 + 5  # five standard errors, and slack for rare values


def test_sums_have_the_mean_and_variance_of_dropped_weights() -> None:
    rate, keys = 0.1, 39
    sums = dropped_weight_sums(keys, (20_000, 39, 2), rate, SEED, 0).double()
    variance = rate / (1 - rate) / keys
    assert abs(float(sums.mean()) - 1) < 4 * (variance / sums.numel()) ** 0.5
    assert float(sums.var()) == pytest.approx(variance, rel=4 * (2 / sums.numel()) ** 0.5)


def test_sums_of_queries_heads_and_sites_are_independent() -> None:
    sums = dropped_weight_sums(5, (50_000, 3, 4), 0.3, SEED, 0).flatten(1).double()  # 3 queries of 4 heads
    correlations = sums.T.corrcoef() - torch.eye(12)
    assert float(correlations.abs().max()) < 5 / len(sums) ** 0.5
    neighbours = torch.stack((sums[1:, 0], sums[:-1, 0])).corrcoef()[0, 1]
    assert abs(float(neighbours)) < 5 / len(sums) ** 0.5
    other = dropped_weight_sums(5, (50_000, 3, 4), 0.3, SEED, 1).flatten(1).double()
    sites = torch.stack((sums[:, 0], other[:, 0])).corrcoef()[0, 1]
    assert abs(float(sites)) < 5 / len(sums) ** 0.5


def test_dropout_has_the_distribution_of_the_reference_model() -> None:
    draws, queries, keys, n_heads = 20_000, 2, 3, 2
    attention, weights = reference(4, n_heads, 0.4)
    context = normal(1, 4).expand(draws, 4)  # every copy has its own mask
    torch.manual_seed(3)
    with torch.no_grad():
        expected = attention.train()(context, queries, keys).flatten(1)
        actual = uniform_attention(context, *weights, queries, keys, n_heads, masks(0.4), 0)[0].flatten(1)
        exact = attention.eval()(context[:1], queries, keys).flatten(1)
    # Tolerances are five standard errors of a mean, and of two covariances.
    assert ((actual.mean(dim=0) - exact).abs() < 5 * actual.std(dim=0) / draws**0.5).all()
    spread = actual.var(dim=0).max()
    assert spread > 1e-3  # the compared covariances are not those of constants
    assert ((actual.T.cov() - expected.T.cov()).abs() < 5 * 2 * spread / draws**0.5).all()
    # Compare all possible values of an element and their frequencies.
    values, order = torch.cat((actual[:, 0], expected[:, 0])).sort()
    kind = (values.diff(prepend=values[:1]) > 1e-5).cumsum(dim=0)
    counts = torch.stack(
        [kind[(order >= draws) == from_reference].bincount(minlength=16) for from_reference in (False, True)]
    )
    assert counts.shape == (2, (keys + 1) ** n_heads)
    assert ((counts[0] - counts[1]).abs() < 5 * counts.sum(dim=0) ** 0.5).all()


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_sums_do_not_depend_on_chunks_of_contexts(chunk: int) -> None:
    whole = dropped_weight_sums(5, (7, 3, 1), 0.3, SEED, 0)
    for start in range(0, 7, chunk):
        for first_row in (start, torch.tensor(start)):
            part = dropped_weight_sums(5, (min(chunk, 7 - start), 3, 1), 0.3, SEED, 0, first_row)
            assert torch.equal(part, whole[start : start + chunk])


@pytest.mark.parametrize(
    ("keys", "rate", "message"), [(3, 1.0, "rate"), (3, -0.1, "rate"), (3, math.nan, "rate"), (0, 0.1, "keys")]
)
def test_invalid_arguments_raise(keys: int, rate: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dropped_weight_sums(keys, (2, 4, 2), rate, SEED, 0)


@pytest.mark.parity
@pytest.mark.parametrize("bf16", [False, True])
def test_errors_are_within_the_rounding_bound_of_the_reference(bf16: bool) -> None:
    attention, weights = reference(32, 4, 0.0)
    context = normal(50, 32)
    exact = attention(context, 6, 39).detach()
    single = attention.float()
    names = ["value.weight", "value.bias", "output.weight", "output.bias"]

    inputs = [tensor.detach().float() for tensor in (context, *weights)]
    dtype, roundings = (torch.bfloat16, 1e-4) if bf16 else (torch.float32, ROUNDINGS)

    def plain(tensors: list[Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
            return [functional_call(single, dict(zip(names, tensors[1:], strict=True)), (tensors[0], 6, 39))]

    actual, _ = uniform_attention(inputs[0], *(w.to(dtype) for w in inputs[1:]), 6, 39, 4, masks(0.0), 0)
    assert_right_up_to_rounding([actual.expand_as(exact)], [exact], plain, inputs, dtype, roundings)


@pytest.mark.compile
def test_compiled_results_equal_eager_results() -> None:
    _, weights = reference(8, 2, 0.0)

    def call(context: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        sums = dropped_weight_sums(39, (3, 39, 2), 0.1, seed, 0)
        return sums, uniform_attention(context, *weights, 39, 39, 2, Masks(0.1, seed, ROW), 0)[0]

    actual, expected = (f(normal(3, 8), SEED) for f in (torch.compile(call, fullgraph=True, dynamic=False), call))
    assert torch.equal(actual[0], expected[0])
    assert torch.allclose(actual[1], expected[1], rtol=0, atol=EXACT)
