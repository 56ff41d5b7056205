"""Attention over keys that are all the same vector, computed as its value path (rewrite 2).

A query attends to K equal keys and values, computed from one context c. Its K scores are equal, so every weight is
1 / K whatever the query is, and the attention returns its value path:

    sum_k (1 / K) (W_v c + b_v) = W_v c + b_v,   result = W_o (W_v c + b_v) + b_o

once per context instead of once per query. The query and key maps of the original get no gradient.

The K weights matter only for their dropout, at the rate p. Dropped and scaled, the K weights of one query and head add
up to

    r = n / (K (1 - p)),   n ~ Binomial(K, 1 - p)

independently for every query and head, and the result depends only on their sum: head h adds r_h u_h to it, with
u_h = W_o,h (W_v,h c + b_v,h). `identical_keys_value` omits this dropout: its result is the expectation of the result
with dropout, and r varies little if K is large (K = 39, p = 0.1: standard deviation 0.053).
`identical_keys_dropout` has the distribution of the original: n is drawn by inversion of its distribution function from
one 32-bit number, so that every probability is exact to 2**-32.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pgat_kernels.ops.dropout import random_codes


def identical_keys_value(
    context: Tensor, value_weight: Tensor, value_bias: Tensor, output_weight: Tensor, output_bias: Tensor
) -> Tensor:
    """Compute attention to keys that are all `context`, without dropout, for any query: [G, D] -> [G, D].

    Args:
        context: c, [G, D].
        value_weight, value_bias: W_v [D, D] and b_v [D].
        output_weight, output_bias: W_o [D, D] and b_o [D].
    """
    return F.linear(F.linear(context, value_weight, value_bias), output_weight, output_bias)


def identical_keys_dropout(
    context: Tensor,
    queries: int,
    keys: int,
    value_weight: Tensor,
    value_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    n_heads: int,
    rate: float,
    seed: Tensor,
    site: int,
    first_row: int | Tensor = 0,
) -> Tensor:
    """Compute attention to `keys` keys that are all `context`, with dropout on the weights: [G, D] -> [G, queries, D].

    Args:
        context: c, [G, D].
        queries: number of queries per context.
        keys: K, the number of repetitions of `context`.
        value_weight, value_bias: W_v [D, D] and b_v [D].
        output_weight, output_bias: W_o [D, D] and b_o [D].
        n_heads: H, divides D.
        rate: p, within [0, 1).
        seed: see `pgat_kernels.ops.dropout.draw_seed`.
        site: of the dropout.
        first_row: number of the first context if these are a chunk of a longer sequence.

    Raises:
        ValueError: if the rate is outside of [0, 1), there is no key, or `n_heads` does not divide D.
    """
    groups, width = context.shape
    if width % n_heads:
        raise ValueError(f"{n_heads} heads do not divide the width {width}")
    scales = dropped_weight_sums(keys, (groups, queries, n_heads), rate, seed, site, first_row)
    value = F.linear(context, value_weight, value_bias).view(groups, n_heads, -1).transpose(0, 1)  # [H, G, d]
    of_heads = value @ output_weight.view(width, n_heads, -1).permute(1, 2, 0)  # [H, G, D]
    return scales.to(of_heads.dtype) @ of_heads.transpose(0, 1) + output_bias


def dropped_weight_sums(
    keys: int, shape: tuple[int, ...], rate: float, seed: Tensor, site: int, first_row: int | Tensor = 0
) -> Tensor:
    """Draw sums of `keys` equal attention weights 1 / `keys` with dropout at `rate`: float32 `shape`, expectation 1.

    They are independent draws of Binomial(keys, 1 - rate) / (keys (1 - rate)). For the arguments see
    `identical_keys_dropout`; rows are the first dimension of `shape`.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the dropout rate is {rate}: it must be at least 0 and below 1")
    if keys < 1:
        raise ValueError(f"attention over {keys} keys: there must be at least one")
    if rate == 0:
        return torch.ones(shape, dtype=torch.float32, device=seed.device)
    codes = random_codes(seed, site, shape, first_row)
    kept = torch.bucketize(codes, _binomial_thresholds(keys, rate, seed.device), right=True)
    return kept.to(torch.float32) / (keys * (1 - rate))


def _binomial_thresholds(keys: int, rate: float, device: torch.device) -> Tensor:
    """Return the first codes that mean n + 1 kept keys, for n = 0 ... keys - 1: ascending int32 [keys].

    Codes start at -2**31; the probability of a code below threshold n is that of at most n kept keys. The thresholds
    are computed on the device to avoid a synchronisation.
    """
    n = torch.arange(keys, dtype=torch.float64, device=device)
    log_choices = math.lgamma(keys + 1) - torch.lgamma(n + 1) - torch.lgamma(keys - n + 1)
    log_probability = log_choices + n * math.log1p(-rate) + (keys - n) * math.log(rate)
    below = log_probability.exp().cumsum(dim=0)
    return (below * 2**32 - 2**31).round().clamp(max=2**31 - 1).to(torch.int32)
