"""Attention of one query to many small groups of keys, without a projection of the tokens (rewrite 5).

A query s attends to E groups of K tokens t_1 ... t_K; keys and values are maps of the tokens. For one head of d
columns, with W_q, W_k, W_v the rows of that head and q = W_q s + b_q:

    score_k  = q' (W_k t_k + b_k) / sqrt(d) = (W_k' q)' t_k / sqrt(d) + q' b_k / sqrt(d)

The last term is the same for all keys of the query, so it does not change the softmax, and b_k drops out. W_k' q [D] is
computed once per query, and multiplied by the E K tokens without projecting them. With the weights p_k, before or after
dropout (so that they need not add up to 1):

    sum_k p_k (W_v t_k + b_v) = W_v (sum_k p_k t_k) + b_v sum_k p_k

so the value projection reads one mixed token per head and group instead of K tokens. Per group and head this takes
2 K D multiplications for scores and mixing and d D for the values, instead of 2 K d D for keys and values.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pgat_kernels.ops.dropout import dropout


class QueryAttentionWeights(NamedTuple):
    """Weights of an attention whose heads have A columns in total."""

    query: Tensor
    """W_q, [A, Dq]"""
    query_bias: Tensor
    """[A]"""
    key: Tensor
    """W_k, [A, D]"""
    key_bias: Tensor
    """[A]; its gradient is exactly zero."""
    value: Tensor
    """W_v, [A, D]"""
    value_bias: Tensor
    """[A]"""
    output: Tensor
    """[Do, A]"""
    output_bias: Tensor
    """[Do]"""


def query_side_attention(
    query: Tensor,
    tokens: Tensor,
    w: QueryAttentionWeights,
    n_heads: int,
    dropout_rate: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    first_row: int | Tensor = 0,
) -> Tensor:
    """Compute multi-head attention of each query to each group of its tokens: [G, E, Do].

    Args:
        query: [G, Dq].
        tokens: [G, E, K, D]; the E groups of K keys share a query.
        w: the maps of query, keys, values and output.
        n_heads: H, divides A.
        dropout_rate: of the attention weights, within [0, 1); 0 in evaluation.
        seed: see `pgat_kernels.ops.dropout.draw_seed`; required if `dropout_rate` is not 0.
        site: of the dropout.
        first_row: number of the first query if these are a chunk of a longer sequence.

    The softmax is computed in at least float32.

    Raises:
        ValueError: if `n_heads` does not divide A, or the rate has no seed or is outside of [0, 1).
    """
    groups, sets, keys, width = tokens.shape
    inner = w.query.shape[0]
    if inner % n_heads:
        raise ValueError(f"{n_heads} heads do not divide the width {inner}")
    head = inner // n_heads
    no_shift = 0 * w.key_bias  # makes the gradient of b_k zero instead of None
    q = (F.linear(query, w.query, w.query_bias) + no_shift) * head**-0.5
    q = q.view(groups, n_heads, head).transpose(0, 1)  # [H, G, d]
    token_queries = (q @ w.key.view(n_heads, head, width)).permute(1, 2, 0)  # [G, D, H]

    scores = (tokens.reshape(groups, sets * keys, width) @ token_queries).view(groups, sets, keys, n_heads)
    acc_dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=2, dtype=acc_dtype)
    if dropout_rate:
        if seed is None:
            raise ValueError(f"the dropout rate is {dropout_rate}: it needs a seed")
        weights = dropout(weights, dropout_rate, seed, site, first_row)

    cast_weights = weights.to(tokens.dtype).view(groups * sets, keys, n_heads).transpose(1, 2)  # [G E, H, K]
    mixed = (cast_weights @ tokens.reshape(groups * sets, keys, width)).transpose(0, 1)  # [H, G E, D]
    values = mixed @ w.value.view(n_heads, head, width).transpose(1, 2)  # [H, G E, d]
    attended = values.permute(1, 0, 2)
    if dropout_rate:
        share = weights.sum(dim=2).view(groups * sets, n_heads, 1)
        attended = attended + share.to(attended.dtype) * w.value_bias.view(n_heads, head)
    else:  # the weights add up to 1
        attended = attended + w.value_bias.view(n_heads, head)
    return F.linear(attended.reshape(groups, sets, inner), w.output, w.output_bias)
