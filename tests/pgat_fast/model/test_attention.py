"""Attention over one key or identical keys, compared with `torch.nn.MultiheadAttention`."""

import pytest
import torch
from torch import Tensor, nn

from pgat_fast.model.reference.attention import IdenticalKeysAttention, SingleKeyAttention
from tests.pgat_fast.model.by_hand import normal, randomize


def packed(value: nn.Linear, output: nn.Linear, n_heads: int, dropout: float, seed: int) -> nn.MultiheadAttention:
    """Return torch's attention with the given value and output layers and random query and key weights."""
    width = value.in_features
    attention = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
    randomize(attention, seed)
    with torch.no_grad():
        attention.in_proj_weight[2 * width :] = value.weight
        attention.in_proj_bias[2 * width :] = value.bias
        attention.out_proj.weight.copy_(output.weight)
        attention.out_proj.bias.copy_(output.bias)
    return attention


@pytest.mark.parametrize("n_heads", [1, 2, 5, 10])
def test_single_key_attention_equals_torch(n_heads: int) -> None:
    attention = SingleKeyAttention(10)
    randomize(attention)
    torch_attention = packed(attention.value, attention.output, n_heads, 0.0, seed=n_heads)
    x = normal(6, 1, 10)
    assert torch.allclose(attention(x), torch_attention(x, x, x)[0], rtol=0, atol=1e-12)  # rounding of float64


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_identical_keys_attention_equals_torch(n_heads: int) -> None:
    attention = IdenticalKeysAttention(8, n_heads, dropout=0.5)
    randomize(attention)
    torch_attention = packed(attention.value, attention.output, n_heads, 0.5, seed=n_heads)
    context, queries = normal(3, 8), normal(3, 5, 8, seed=4)
    keys = context[:, None].expand(3, 7, 8)
    expected = torch_attention(queries, keys, keys)[0]
    assert torch.allclose(attention(context, queries=5, keys=7), expected, rtol=0, atol=1e-12)  # rounding of float64


def dropped(attention: nn.Module, call: tuple[Tensor | int, ...], draws: int) -> Tensor:
    """Return the results of `draws` calls in training mode."""
    torch.manual_seed(5)
    attention.train()
    with torch.no_grad():
        results = [attention(*call) for _ in range(draws)]
    return torch.stack([result[0] if isinstance(result, tuple) else result for result in results])


def test_dropout_over_identical_keys_is_distributed_as_in_torch() -> None:
    draws, keys = 4000, 3
    attention = IdenticalKeysAttention(4, 2, dropout=0.4)
    randomize(attention)
    context = normal(1, 4)
    exact = attention(context, 2, keys)
    torch_attention = packed(attention.value, attention.output, 2, 0.4, seed=3)
    repeated = context[:, None].expand(1, keys, 4)
    actual = dropped(attention, (context, 2, keys), draws).flatten(1)
    expected = dropped(torch_attention, (normal(1, 2, 4), repeated, repeated), draws).flatten(1)
    # Five standard errors of a mean and of a covariance over the draws.
    assert ((actual.mean(dim=0) - exact.flatten()).abs() < 5 * actual.std(dim=0) / draws**0.5).all()
    spread = actual.var(dim=0).max()
    assert ((actual.T.cov() - expected.T.cov()).abs() < 5 * 2 * spread / draws**0.5).all()
    assert spread > 1e-3  # the outputs vary
