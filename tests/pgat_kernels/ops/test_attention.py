"""Tests of multi-head attention in blocks, compared with torch's attention and between block sizes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pgat_kernels.instrumentation import chunk_sizes_of
from pgat_kernels.ops import attention as module
from pgat_kernels.ops import chunk_sizes
from pgat_kernels.ops.attention import attention
from tests.combinations import pairwise
from tests.rounding import assert_right_up_to_rounding

SHAPES = [(1, 1, 1, 1, 3), (1, 2, 33, 33, 10), (3, 2, 7, 9, 8), (5, 1, 13, 13, 8), (2, 8, 5, 21, 16)]
"""Groups, heads, queries, keys and width."""
SEED = torch.tensor(7)


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, biased: bool = False) -> list[Tensor]:
    """Return queries, keys, weight, its bias, and, if `biased`, the bias of the scores."""
    groups, _, queries, keys, width = shape
    generator = torch.Generator().manual_seed(3)
    sizes = [(groups, queries, width), (groups, keys, width), (3 * width, width), (3 * width,)]
    sizes += [(groups, queries, keys)] if biased else []
    values = [torch.randn(s, generator=generator, dtype=torch.float64) for s in sizes]
    values[2] *= width**-0.5
    return [value.to(dtype).requires_grad_() for value in values]


def plain(x: Tensor, y: Tensor, w: Tensor, b: Tensor, bias: Tensor | None = None, *, n_heads: int) -> Tensor:
    """Compute the same with torch's attention."""
    width = x.shape[-1]

    def heads(z: Tensor) -> Tensor:
        return z.unflatten(-1, (n_heads, -1)).transpose(1, 2)

    q, k, v = (
        heads(F.linear(z, w[i * width : (i + 1) * width], b[i * width : (i + 1) * width]))
        for i, z in enumerate((x, y, y))
    )
    mask = None if bias is None else bias[:, None].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0).transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("shape", "biased", "cache"), pairwise(SHAPES, [False, True], [chunk_sizes.CACHE, 3000, 300, 1]), ids=str
)
def test_outputs_and_gradients_equal_those_of_torch(
    shape: tuple[int, ...], biased: bool, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_sizes, "CACHE", cache)
    tensors = inputs(shape, biased=biased)
    output = attention(*tensors, n_heads=shape[1], seed=SEED)
    expected_output = plain(*tensors, n_heads=shape[1])
    torch.testing.assert_close(output, expected_output, rtol=1e-10, atol=1e-10)
    g = torch.randn_like(expected_output)
    for actual, expected in zip(
        torch.autograd.grad(output, tensors, g), torch.autograd.grad(expected_output, tensors, g), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("shape", "dtype"), [*((s, torch.float64) for s in SHAPES), ((3, 2, 7, 9, 8), torch.float32)])
def test_fused_attention_of_gpus_equals_blocks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Take the path of GPUs on a CPU, whose fused attention computes the same; dropout is torch's there."""
    tensors = inputs(shape, dtype)
    expected_output = attention(*tensors, n_heads=shape[1], seed=SEED)
    with chunk_sizes_of("cuda"):
        repeatable = attention(*tensors, n_heads=shape[1], seed=SEED)
        output = attention(*tensors, n_heads=shape[1], seed=SEED, repeatable=False)
    assert repeatable.grad_fn is not None
    assert "attention" in repeatable.grad_fn.name()
    assert output.grad_fn is not None
    assert "attention" not in output.grad_fn.name()  # torch's own operations, not the operator in blocks
    bound = 1e-10 if dtype == torch.float64 else 2e-5  # some dozens of roundings of results of about 1
    g = torch.randn_like(expected_output)
    gradients, expected_gradients = (torch.autograd.grad(y, tensors, g) for y in (output, expected_output))
    for actual, expected in zip([output, *gradients], [expected_output, *expected_gradients], strict=True):
        torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def test_fused_attention_of_gpus_drops_weights_at_the_rate() -> None:
    x, y, w, b = inputs((1, 2, 64, 256, 8), torch.float32)
    values = torch.ones_like(y)
    w = torch.cat((w[:16], torch.zeros_like(w[16:])))
    b = torch.cat((b[:16], torch.ones_like(b[16:])))  # all values are 1, so results are sums of the kept weights / 0.7
    torch.manual_seed(0)
    with chunk_sizes_of("cuda"):
        first, second = (attention(x, values, w, b, n_heads=2, seed=SEED, rate=0.3, repeatable=False) for _ in range(2))
    assert not torch.equal(first, second)  # masks are torch's random numbers, not those of the seed
    assert first.std() > 0.01
    assert abs(first.mean() - 1) < 0.02  # over 128 rows with a standard deviation of 0.65 / 16 each


def test_gradients_of_a_tensor_used_as_queries_and_keys_are_added() -> None:
    x, _, w, b = inputs((2, 2, 9, 9, 8))
    output, expected_output = attention(x, x, w, b, n_heads=2, seed=SEED), plain(x, x, w, b, n_heads=2)
    actual, expected = (torch.autograd.grad(y.square().sum(), x)[0] for y in (output, expected_output))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parity
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_within_the_rounding_bound(dtype: torch.dtype) -> None:
    shape = (2, 8, 60, 70, 208)
    g = torch.randn(2, 60, 208, generator=torch.Generator().manual_seed(8), dtype=torch.float64)

    def results(tensors: list[Tensor], call: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in tensors]
        y = call(*leaves, n_heads=8)
        return [y, *torch.autograd.grad(y, leaves, g.to(y.dtype))]

    exact, fp32_tensors = inputs(shape), inputs(shape, torch.float32)
    actual = results(fp32_tensors, partial(attention, seed=SEED, dtype=dtype))
    assert actual[0].dtype == dtype
    narrow = [x.detach().to(dtype) for x in fp32_tensors]
    # Sums of many terms are in float32 and torch's in the dtype, so there is no rounding beyond torch's.
    assert_right_up_to_rounding(
        actual, results(exact, plain), lambda tensors: results(tensors, plain), narrow, dtype, roundings=1e-4
    )


@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_gradients_with_dropout_pass_gradcheck(shape: tuple[int, ...]) -> None:
    arguments = inputs((shape[0], shape[1], 4, 5, shape[4]))

    def call(*tensors: Tensor) -> Tensor:
        return attention(*tensors, n_heads=shape[1], seed=SEED, rate=0.3)

    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_dropout_does_not_depend_on_the_blocks(
    shape: tuple[int, ...], biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = inputs(shape, biased=biased)
    g = torch.randn_like(tensors[0])

    def outcome(cache: int, threads: int) -> tuple[Tensor, ...]:
        monkeypatch.setattr(chunk_sizes, "CACHE", cache)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        y = attention(*tensors, n_heads=shape[1], seed=SEED, rate=0.4)
        return y, *torch.autograd.grad(y, tensors, g)

    whole = outcome(chunk_sizes.CACHE, 1)
    for cache, threads in ((1, 1), (400, 1), (400, 2), (400, 5), (3000, 100)):
        for actual, expected in zip(outcome(cache, threads), whole, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_dropout_keeps_the_expectation_and_depends_on_the_seed() -> None:
    shape = (1, 2, 6, 40, 8)
    tensors = [x.detach() for x in inputs(shape, torch.float32)]
    truth = attention(*tensors, n_heads=2, seed=SEED)
    draws = torch.stack([attention(*tensors, n_heads=2, seed=torch.tensor(s), rate=0.2) for s in range(500)])
    assert float((draws.mean(dim=0) - truth).abs().max()) < 6 * float(draws.std(dim=0).max()) / 500**0.5
    repeated = attention(*tensors, n_heads=2, seed=torch.tensor(5), rate=0.2)
    assert torch.equal(repeated, draws[5])


def test_hidden_keys_have_no_weight_and_rows_without_keys_are_finite() -> None:
    x, y, w, b, bias = inputs((1, 1, 3, 4, 5), biased=True)
    hidden = torch.zeros_like(bias)
    hidden[:, :, 2:] = -1e30
    actual = attention(x, y, w, b, hidden, n_heads=1, seed=SEED)
    torch.testing.assert_close(actual, plain(x, y[:, :2], w, b, n_heads=1), rtol=1e-10, atol=1e-10)
    fully_hidden = attention(x, y, w, b, torch.full_like(bias, -1e30), n_heads=1, seed=SEED)
    assert bool(fully_hidden.isfinite().all())


@pytest.mark.parametrize("biased", [False, True])
def test_operator_passes_opcheck(biased: bool) -> None:
    tensors = inputs((2, 2, 5, 6, 4), torch.float32, biased)
    bias = tensors[4] if biased else None
    torch.library.opcheck(
        torch.ops.pgat.attention.default, (*tensors[:4], bias, SEED, 0.1, 2, torch.float32, False)
    )  # fmt: skip


@pytest.mark.compile
def test_compiled_results_equal_eager_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_COMPILING", 0)
    monkeypatch.setattr(chunk_sizes, "CACHE", 2000)  # several blocks, the last one padded
    x, _, w, b = inputs((2, 2, 33, 33, 8), torch.float32)

    def call(x: Tensor, w: Tensor, b: Tensor, compile_blocks: bool) -> Tensor:
        return attention(x * 1.5, x * 1.5, w, b, n_heads=2, seed=SEED, rate=0.2, compile_blocks=compile_blocks)

    whole = torch.compile(call, fullgraph=True, dynamic=False)
    results = []
    for function, compile_blocks in ((call, False), (call, True), (whole, True)):
        y = function(x, w, b, compile_blocks)
        results.append([y, *torch.autograd.grad(y.square().sum(), (x, w, b))])
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert float((actual - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_results_are_bitwise_repeatable() -> None:
    tensors = inputs((2, 2, 33, 33, 8), torch.float32)
    runs = []
    for _ in range(2):
        y = attention(*tensors, n_heads=2, seed=SEED, rate=0.2)
        runs.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_only_tokens_and_weights_are_saved() -> None:
    tensors = inputs((1, 4, 300, 300, 8), torch.float32)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        attention(*tensors, n_heads=4, seed=SEED, rate=0.1)
    assert sum(t.numel() for t in saved) <= sum(t.numel() for t in tensors) + 1


@pytest.mark.parametrize("biased", [False, True])
def test_autocast_does_not_affect_the_operator(biased: bool) -> None:
    tensors = inputs((2, 2, 7, 9, 8), torch.float32, biased)
    plain_result = attention(*tensors, n_heads=2, seed=SEED)
    g = torch.randn_like(plain_result)
    expected = torch.autograd.grad(plain_result, tensors, g)
    with torch.autocast("cpu", torch.bfloat16):
        result = attention(*tensors, n_heads=2, seed=SEED)
        gradients = torch.autograd.grad(result, tensors, g)
    assert torch.equal(result, plain_result)
    assert all(
        torch.equal(gradient, plain_gradient) for gradient, plain_gradient in zip(gradients, expected, strict=True)
    )


def test_backward_operator_passes_opcheck_with_a_transposed_bias() -> None:
    arguments = inputs((1, 2, 5, 5, 8), biased=True)
    transposed = arguments[-1].transpose(1, 2)
    tensors = [torch.randn(1, 5, 8, dtype=torch.float64), *arguments[:-1], transposed, SEED]
    torch.library.opcheck(
        torch.ops.pgat.attention_backward.default,
        (*(x.detach() for x in tensors), 0.0, 2, torch.float64, False),
        test_utils=("test_schema", "test_faketensor"),
    )
