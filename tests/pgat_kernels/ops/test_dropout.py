"""Tests of dropout masks as functions of seed and position."""

import math

import pytest
import torch
from torch import Tensor

from pgat_kernels.ops.dropout import (
    draw_seed,
    dropout,
    hash_counters,
    keep_mask,
    keep_scale,
    kept_bytes,
    kept_words,
    random_codes,
    site_key,
    words_of,
)

CPU = torch.device("cpu")
SHAPES = [(1,), (7,), (5, 1), (3, 7), (4, 6), (2, 3, 5), (6, 2, 2, 3)]
"""Shapes with rows of odd and even sizes."""


def seed_of(number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.int64)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.stack((a.flatten(), b.flatten())).double().corrcoef()[0, 1])


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.35, 0.5, 0.9])
def test_fraction_of_dropped_elements_is_the_rate(rate: float) -> None:
    mask = keep_mask(seed_of(1), 0, (1001, 999), rate)
    realised = 1 - 1 / keep_scale(rate)
    assert abs(realised - rate) <= 1 / 512, "half of the step of 1/256"
    error = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(float(mask.double().mean()) - (1 - realised)) < 4 * error


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.999, 1 - 2**-40])
def test_kept_values_are_scaled_by_the_rounded_rate(rate: float) -> None:
    assert 1 / keep_scale(rate) == pytest.approx(1 - rate, abs=2**-8)  # the step of the rounded rates
    dropped = (1 - 1 / keep_scale(rate)) * 2**8
    assert dropped == pytest.approx(round(dropped), abs=1e-6)  # an integer number of codes


def test_tiny_rate_drops_some_and_rate_near_one_keeps_some() -> None:
    for rate in (1e-9, 1 - 1e-9):
        mask = keep_mask(seed_of(1), 0, (100, 1000), rate)
        assert mask.any()
        assert not mask.all()


def test_similar_keys_do_not_give_shifted_masks() -> None:
    """The key is added to a counter: without its second half, keys that differ by 1 would shift the mask by 4."""

    def of(key: Tensor) -> Tensor:
        counters = hash_counters(1, words_of(4000), 0, CPU)
        return kept_bytes(kept_words(counters, key, 0.5), (1, 4000))

    key = site_key(seed_of(1), 0)
    first, second = (of(key + torch.tensor([step, 0]).int()) for step in (0, 1))
    assert torch.equal(first[:, 4:], second[:, :-4])
    second = of(key + torch.tensor([1, 0x5EED1234]).int())
    assert abs(correlation(first[:, 4:], second[:, :-4])) < 5 / 4000**0.5


def test_dropout_keeps_the_expectation() -> None:
    x = torch.full((1000, 1000), 3.0, dtype=torch.float64)
    mean = float(dropout(x, 0.4, seed_of(2), 0).mean())
    assert abs(mean - 3) < 4 * 3 * (0.4 / 0.6 / x.numel()) ** 0.5


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_every_byte_of_the_codes_is_uniformly_distributed(shift: int) -> None:
    codes = random_codes(seed_of(3), 0, (1000, 1001))
    assert codes.dtype == torch.int32
    counts = ((codes.long() >> shift) & 255).flatten().bincount(minlength=256).double()
    expected = codes.numel() / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())  # chi-square with 255 degrees of freedom
    assert abs(statistic - 255) < 5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, 13, 208])
def test_masks_of_neighbouring_elements_are_independent(lag: int) -> None:
    mask = keep_mask(seed_of(4), 0, (2000, 512), 0.3)
    limit = 5 / (mask.numel() - 2000 * lag) ** 0.5
    assert abs(correlation(mask[:, lag:], mask[:, :-lag])) < limit
    assert abs(correlation(mask[lag:], mask[:-lag])) < limit


def test_masks_of_sites_and_seeds_are_independent() -> None:
    masks = [keep_mask(seed_of(seed), site, (1000, 512), 0.3) for seed in (0, 1, 2**61) for site in range(5)]
    limit = 5 / masks[0].numel() ** 0.5
    for k, mask in enumerate(masks):
        assert all(abs(correlation(mask, other)) < limit for other in masks[:k])


@pytest.mark.parametrize("shape", SHAPES)
def test_same_seed_gives_the_same_mask(shape: tuple[int, ...]) -> None:
    first, second = (keep_mask(seed_of(5), 1, shape, 0.5) for _ in range(2))
    assert first.shape == shape
    assert first.dtype == torch.bool
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_masks_do_not_depend_on_chunks(shape: tuple[int, ...], chunk: int) -> None:
    x = torch.arange(1.0, math.prod(shape) + 1).view(shape)
    whole = dropout(x, 0.5, seed_of(6), 2)
    starts = range(0, shape[0], chunk)
    parts = [dropout(x[start : start + chunk], 0.5, seed_of(6), 2, first_row=start) for start in starts]
    assert torch.equal(torch.cat(parts), whole)
    parts = [dropout(x[s : s + chunk], 0.5, seed_of(6), 2, first_row=torch.tensor(s)) for s in starts]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("shape", SHAPES)
def test_first_row_may_be_a_vector_of_row_numbers(shape: tuple[int, ...]) -> None:
    whole = keep_mask(seed_of(6), 2, (20, *shape[1:]), 0.5)
    numbers = torch.arange(shape[0]) * 3 + 1
    assert torch.equal(keep_mask(seed_of(6), 2, shape, 0.5, numbers), whole[numbers])


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
def test_invalid_rate_raises(rate: float) -> None:
    with pytest.raises(ValueError, match="dropout rate"):
        dropout(torch.ones(3, 4), rate, seed_of(0), 0)
    with pytest.raises(ValueError, match="dropout rate"):
        keep_mask(seed_of(0), 0, (3, 4), rate)


def test_rate_zero_changes_nothing() -> None:
    x = torch.randn(3, 5)
    assert dropout(x, 0.0, seed_of(0), 0) is x
    assert bool(keep_mask(seed_of(0), 0, (300, 501), 0.0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_result_keeps_the_dtype_and_gradient_has_the_same_mask(dtype: torch.dtype) -> None:
    x = torch.ones(3, 5, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.5, seed_of(7), 0)
    assert y.dtype == dtype
    expected = torch.where(keep_mask(seed_of(7), 0, (3, 5), 0.5), 2.0, 0.0).to(dtype)
    assert torch.equal(y, expected)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, expected)


def test_dropped_infinity_is_zero() -> None:
    x = torch.full((4, 8), math.inf)
    y = dropout(x, 0.5, seed_of(8), 0)
    assert set(y.flatten().tolist()) == {0.0, math.inf}


def test_seeds_are_drawn_from_the_global_generator() -> None:
    torch.manual_seed(3)
    first, second = draw_seed(CPU), draw_seed(CPU)
    torch.manual_seed(3)
    assert torch.equal(draw_seed(CPU), first)
    assert not torch.equal(first, second)
    assert first.shape == ()
    assert first.dtype == torch.int64


@pytest.mark.compile
def test_compiled_masks_equal_eager_masks() -> None:
    def call(seed: Tensor, first_row: Tensor) -> tuple[Tensor, ...]:
        even = dropout(torch.ones(33, 6, 4), 0.3, seed, 3, first_row)
        odd = dropout(torch.ones(33, 7, 3), 0.3, seed, 4, first_row)
        return even, odd, random_codes(seed, 5, (9, 5), first_row)

    compiled = torch.compile(call, fullgraph=True, dynamic=False)
    for seed in (0, 2**62 - 1):
        inputs = (seed_of(seed), torch.tensor(11))
        for actual, expected in zip(compiled(*inputs), call(*inputs), strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.compile
def test_compiled_masks_do_not_write_out_of_bounds() -> None:
    """With a multiplied counter the compiler wrote vectors beyond the end if rows were no multiple of their length."""

    compiled = torch.compile(lambda seed: keep_mask(seed, 3, (7, 36), 0.3), fullgraph=True, dynamic=False)
    expected = keep_mask(seed_of(1), 3, (7, 36), 0.3)
    for _ in range(300):  # a corrupted heap would abort the process
        buffers = [torch.zeros(n, dtype=torch.int64) for n in range(100, 140)]
        assert torch.equal(compiled(seed_of(1)), expected)
        assert not any(bool(tensor.any()) for tensor in buffers)
