"""Attention over keys that are all the same vector, computed as its value path (rewrite 2).

A query attends to K equal keys and values, computed from one context c. Its K scores are equal, so every weight is
1 / K whatever the query is, and the attention returns its value path:

    sum_k (1 / K) (W_v c + b_v) = W_v c + b_v,   result = W_o (W_v c + b_v) + b_o

once per context instead of once per query. The query and key maps of the original get no gradient.

The K weights matter only for their dropout, at the rate p. Dropped and scaled, the K weights of one query and head add
up to

    r = n / (K (1 - p)),   n ~ Binomial(K, 1 - p)

independently for every query and head, and the result depends only on their sum: head h adds r_h u_h to it, with
u_h = W_o,h (W_v,h c + b_v,h). Without this dropout the result is the expectation of the result with dropout, and r
varies little if K is large (K = 39, p = 0.1: standard deviation 0.053). With it the result has the distribution of the
original: n is drawn by inversion of its distribution function from one 32-bit number, so that every probability is
exact to 2**-32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pgat_kernels.ops.dropout import random_codes
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.vjp import linear


def uniform_attention(
    context: Tensor,
    value: Tensor,
    value_bias: Tensor,
    outer: Tensor,
    outer_bias: Tensor,
    queries: int,
    keys: int,
    dropped_heads: int,
    masks: Masks,
    site: int,
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]]:
    """Compute attention to `keys` keys that are all `context`: [M, D] -> [M, queries, D], and its backward pass.

    Args:
        context: c, [M, D].
        value, value_bias: W_v [D, D] and b_v [D].
        outer, outer_bias: W_o [D, D] and b_o [D].
        queries: number of queries per context.
        keys: K, the number of repetitions of the context.
        dropped_heads: H, divides D, for dropout of the weights of that many heads; 0 omits the dropout.
        masks, site: of the dropout; rows are contexts.

    Without dropout the result is [M, 1, D], the same for all queries. The backward pass takes the gradient of the
    result, [M, queries, D], and returns those of the first five arguments; see `pgat_kernels.ops.vjp`.
    """
    rows, width = context.shape
    v, value_back = linear(context, value, value_bias)
    if dropped_heads and masks.rate > 0:
        shape = (rows, queries, dropped_heads)
        sums = dropped_weight_sums(keys, shape, masks.rate, masks.seed, site, masks.first_row).to(v.dtype)
        by_head = v.view(rows, dropped_heads, -1).transpose(0, 1)  # [H, M, d]
        outer_by_head = outer.view(width, dropped_heads, -1).transpose(0, 1)  # [H, D, d]
        of_heads = torch.bmm(by_head, outer_by_head.transpose(1, 2)).transpose(0, 1)  # [M, H, D]
        o = torch.bmm(sums, of_heads) + outer_bias

        def outer_back(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            cast_g = g.to(v.dtype)
            g_heads = torch.bmm(sums.transpose(1, 2), cast_g).transpose(0, 1)  # [H, M, D]
            g_outer = torch.bmm(g_heads.transpose(1, 2), by_head).transpose(0, 1).reshape(width, width)
            g_v = torch.bmm(g_heads, outer_by_head).transpose(0, 1).reshape(rows, width)
            return g_v, g_outer.to(context.dtype), g.sum(dim=(0, 1), dtype=context.dtype)

    else:
        once, once_back = linear(v, outer, outer_bias)
        o = once[:, None]

        def outer_back(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return once_back(g.sum(dim=1))

    def backward(g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        g_v, g_outer, g_outer_bias = outer_back(g)
        return *value_back(g_v), g_outer, g_outer_bias

    return o, backward


def dropped_weight_sums(
    keys: int, shape: tuple[int, ...], rate: float, seed: Tensor, site: int, first_row: int | Tensor = 0
) -> Tensor:
    """Draw sums of `keys` equal attention weights 1 / `keys` with dropout at `rate`: float32 `shape`, expectation 1.

    They are independent draws of Binomial(keys, 1 - rate) / (keys (1 - rate)).

    Args:
        keys: at least 1.
        shape: its first dimension are rows.
        rate: within [0, 1).
        seed, site, first_row: see `pgat_kernels.ops.dropout.keep_mask`.

    Raises:
        ValueError: if the rate is outside of [0, 1), or there is no key.
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
