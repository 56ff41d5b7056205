"""Tests of attention with projections on the query side, compared with attention that projects every token."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_kernels.conditioning import ROUNDINGS
from pgat_kernels.ops.dropout import keep_mask, keep_scale
from pgat_kernels.ops.query_attention import QueryAttentionWeights, query_side_attention
from tests.pgat_kernels.gradients import EXACT, Call, assert_close, normal, results
from tests.rounding import assert_right_up_to_rounding

SEED = torch.tensor(77)
Size = tuple[int, int, int, int, int, int, int, int]
SIZES: list[Size] = [
    # queries, groups, keys, columns of a token, of a query, of all heads, of the result, heads
    (1, 1, 1, 3, 2, 4, 5, 1),
    (1, 1, 13, 8, 8, 8, 8, 2),
    (3, 1, 13, 13, 13, 16, 13, 8),
    (3, 5, 3, 8, 6, 8, 7, 8),
    (7, 4, 3, 5, 5, 6, 5, 3),
]


def values_of(size: Size) -> list[Tensor]:
    """Return queries, tokens, and the weights in the order of `QueryAttentionWeights`."""
    queries, groups, keys, width, query_width, inner, out, _ = size
    shapes = [
        (queries, query_width), (queries, groups, keys, width),
        (inner, query_width), (inner,), (inner, width), (inner,), (inner, width), (inner,), (out, inner), (out,),
    ]  # fmt: skip
    scales = [1, 1, *(n**-0.5 for n in (query_width, 1, width, 1, width, 1, inner, 1))]
    return [normal(*shape, seed=k) * scale for k, (shape, scale) in enumerate(zip(shapes, scales, strict=True))]


def ours(n_heads: int, rate: float = 0.0) -> Call:
    def call(query: Tensor, tokens: Tensor, *weights: Tensor) -> Tensor:
        return query_side_attention(query, tokens, QueryAttentionWeights(*weights), n_heads, rate, SEED, site=3)

    return call


def of_every_token(n_heads: int, rate: float = 0.0) -> Call:
    """Return an attention that computes keys and values of every token."""

    def call(query: Tensor, tokens: Tensor, *weights: Tensor) -> Tensor:
        w = QueryAttentionWeights(*weights)
        q = F.linear(query, w.query, w.query_bias).unflatten(-1, (n_heads, -1))  # [G, H, d]
        k = F.linear(tokens, w.key, w.key_bias).unflatten(-1, (n_heads, -1))  # [G, E, K, H, d]
        v = F.linear(tokens, w.value, w.value_bias).unflatten(-1, (n_heads, -1))
        scores = torch.einsum("ghc,gekhc->gekh", q, k) / q.shape[-1] ** 0.5
        p = torch.softmax(scores, dim=2, dtype=torch.promote_types(scores.dtype, torch.float32))
        if rate:
            p = p * keep_mask(SEED, 3, tuple(p.shape), rate) * keep_scale(rate)
        attended = torch.einsum("gekh,gekhc->gehc", p.to(v.dtype), v).flatten(2)
        return F.linear(attended, w.output, w.output_bias)

    return call


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_results_and_gradients_equal_those_with_projected_tokens(size: Size, rate: float) -> None:
    values = values_of(size)
    assert_close(results(ours(size[-1], rate), values), results(of_every_token(size[-1], rate), values))


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_result_equals_torch_multihead_attention(n_heads: int) -> None:
    attention = nn.MultiheadAttention(8, n_heads, batch_first=True).double()
    for k, parameter in enumerate(attention.parameters()):
        parameter.data = normal(*parameter.shape, seed=k)
    query, tokens = normal(5, 8), normal(5, 3, 4, 8)
    (w_q, w_k, w_v), (b_q, b_k, b_v) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    out = attention.out_proj
    weights = QueryAttentionWeights(w_q, b_q, w_k, b_k, w_v, b_v, out.weight, out.bias)
    actual = query_side_attention(query, tokens, weights, n_heads)
    for group in range(3):
        keys = tokens[:, group]
        assert torch.allclose(actual[:, group], attention(query[:, None], keys, keys)[0][:, 0], rtol=0, atol=EXACT)


def test_key_bias_has_no_effect_and_zero_gradient() -> None:
    values = values_of(SIZES[3])
    expected = results(ours(8, 0.3), values)
    assert bool((expected[1 + 5] == 0).all())
    values[5] = values[5] * 1e6
    assert all(torch.equal(a, b) for a, b in zip(results(ours(8, 0.3), values), expected, strict=True))


@pytest.mark.parity
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("size", [(30, 1, 13, 48, 48, 64, 48, 8), (6, 40, 3, 48, 48, 48, 48, 8)])
def test_errors_are_within_the_rounding_bound_of_projected_tokens(size: Size, autocast: bool) -> None:
    values = values_of(size)

    def rounded(call: Call, tensors: list[Tensor]) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return results(call, tensors, torch.float32)

    dtype, roundings = (torch.bfloat16, 1e-4) if autocast else (torch.float32, ROUNDINGS)
    assert_right_up_to_rounding(
        rounded(ours(8), values),
        results(of_every_token(8), values),
        lambda tensors: rounded(of_every_token(8), tensors),
        [value.float() for value in values],
        dtype,
        roundings,
    )


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_dropout_does_not_depend_on_chunks_of_queries(chunk: int) -> None:
    query, tokens, *weights = values_of(SIZES[4])
    whole = ours(3, 0.4)(query, tokens, *weights)
    for start in range(0, len(query), chunk):
        for first_row in (start, torch.tensor(start)):
            rows = slice(start, start + chunk)
            part = query_side_attention(
                query[rows], tokens[rows], QueryAttentionWeights(*weights), 3, 0.4, SEED, 3, first_row
            )
            assert torch.allclose(part, whole[rows], rtol=0, atol=EXACT)


def test_sites_have_different_dropout_masks() -> None:
    query, tokens, *weights = values_of(SIZES[4])
    first, second = (
        query_side_attention(query, tokens, QueryAttentionWeights(*weights), 3, 0.4, SEED, site) for site in (0, 1)
    )
    assert not torch.allclose(first, second)


def test_dropout_keeps_the_expectation() -> None:
    query, tokens, *weights = values_of((1, 1, 4, 5, 5, 6, 5, 3))
    draws = 20_000  # copies of one query, each with its own mask
    call = ours(3, 0.3)
    actual = call(query.expand(draws, -1), tokens.expand(draws, -1, -1, -1), *weights)[:, 0]
    expected = ours(3)(query, tokens, *weights)[0, 0]
    assert ((actual.mean(dim=0) - expected).abs() < 5 * actual.std(dim=0) / draws**0.5).all()


def test_invalid_arguments_raise() -> None:
    query, tokens, *weights = values_of(SIZES[4])
    w = QueryAttentionWeights(*weights)
    with pytest.raises(ValueError, match="heads"):
        query_side_attention(query, tokens, w, 4)
    with pytest.raises(ValueError, match="seed"):
        query_side_attention(query, tokens, w, 3, 0.1)
    with pytest.raises(ValueError, match="rate"):
        query_side_attention(query, tokens, w, 3, 1.0, SEED)


@pytest.mark.compile
def test_compiled_results_equal_eager_results() -> None:
    values = values_of(SIZES[4])
    compiled = torch.compile(ours(3, 0.3), fullgraph=True, dynamic=False)
    assert_close(results(compiled, values), results(ours(3, 0.3), values))
