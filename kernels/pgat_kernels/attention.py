"""Multi-head attention that never holds all attention weights (rewrite 8).

Queries are taken a block at a time: their scores against all keys, softmax, dropout and the weighted sum of the values
are done before the next block begins. The backward pass computes projections and a block's weights again, with the same
dropout mask. What is kept are the tokens. Memory is linear in their number; a block stays in a processor's cache.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from pgat_kernels.chunks import Masks, auto_chunk, call_compiled
from pgat_kernels.pairs import linear, softmax_dropout
from pgat_kernels.products import fast_exact_float32

WORTH_COMPILING = 2**22
"""Scores of all heads below which a compiled block saves less than compiling it costs."""

Blocks = tuple[Tensor, Tensor, Tensor, Tensor | None]


def _block(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, masks: Masks
) -> tuple[Callable[[], Tensor], Callable[[Tensor], Blocks]]:
    """Queries [G, H, C, d] against keys and values [G, H, T, d], with what is added to their scores, [G, C, T]."""
    groups, heads, queries, depth = q.shape
    keys = k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    q3, k3, v3 = (x.reshape(groups * heads, -1, depth) for x in (q, k, v))
    scores = torch.bmm(q3, k3.transpose(1, 2)).view(groups, heads, queries, keys)
    if bias is not None:
        scores = scores.to(wide) + bias[:, None]
    p4, softmax_back = softmax_dropout(scores, q.dtype, masks, 0)
    p = p4.view(groups * heads, queries, keys)

    def forward() -> Tensor:
        return (torch.bmm(p, v3) * masks.scale).view_as(q)

    def backward(g: Tensor) -> Blocks:
        g3 = g.reshape(groups * heads, queries, depth) * masks.scale
        g_v = torch.bmm(p.transpose(1, 2), g3)
        g_p = torch.bmm(g3, v3.transpose(1, 2)).view(groups, heads, queries, keys)
        g_scores = softmax_back(g_p)
        g_bias = None if bias is None else g_scores.to(wide).sum(dim=1)
        flat = g_scores.view(groups * heads, queries, keys)
        g_q, g_k = torch.bmm(flat, k3), torch.bmm(flat.transpose(1, 2), q3)
        return g_q.view_as(q), g_k.view_as(k).to(wide), g_v.view_as(v).to(wide), g_bias

    return forward, backward


def _forward_block(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, seed: Tensor, row: Tensor, rate: float
) -> Tensor:
    return _block(q, k, v, bias, Masks(rate, seed, row))[0]()


def _backward_block(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, seed: Tensor, row: Tensor, rate: float
) -> Blocks:
    return _block(q, k, v, bias, Masks(rate, seed, row))[1](g)


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int]:
    """Groups and queries at a time: several groups whole where they are small, else parts of one."""
    groups, heads, queries, _ = q.shape
    a_query = 4 * heads * k.shape[2]
    block = auto_chunk(queries, a_query, q.device)
    if block < queries:
        return 1, block
    return auto_chunk(groups, a_query * queries, q.device), queries


def _pad(x: Tensor, groups: int, queries: int | None = None) -> Tensor:
    """Zeros up to `groups` in dimension 0, and up to `queries` in the second to last one: blocks have one shape."""
    more = 0 if queries is None else queries - x.shape[-2]
    missing = groups - x.shape[0]
    if not (more or missing):
        return x
    return F.pad(x, (0, 0, 0, more) + (0, 0) * (x.dim() - 3) + (0, missing))


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, seed: Tensor, rate: float, compile_blocks: bool
) -> Tensor:
    """[G, H, Q, d], [G, H, T, d] -> [G, H, Q, d]."""
    groups, queries = _sizes(q, k)
    run: Callable[..., Any] = partial(call_compiled, _forward_block) if compile_blocks else _forward_block
    result = torch.empty_like(q)
    row = 0
    for i in range(0, q.shape[0], groups):
        group = slice(i, i + groups)
        own_k, own_v = _pad(k[group], groups), _pad(v[group], groups)
        for j in range(0, q.shape[2], queries):
            block = slice(j, j + queries)
            own = None if bias is None else _pad(bias[group, block], groups, queries)
            y = run(_pad(q[group, :, block], groups, queries), own_k, own_v, own, seed, seed.new_tensor(row), rate)
            out = result[group, :, block]
            out.copy_(y[: out.shape[0], :, : out.shape[2]])
            row += groups
    return result


def _attend_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    rate: float,
    compile_blocks: bool,
) -> Blocks:
    """Gradients of q, k, v and bias; those of k and v, which add up over blocks, at least float32."""
    groups, queries = _sizes(q, k)
    run: Callable[..., Any] = partial(call_compiled, _backward_block) if compile_blocks else _backward_block
    wide = torch.promote_types(q.dtype, torch.float32)
    g_q = torch.empty_like(q)
    g_k, g_v = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
    g_bias = None if bias is None else torch.empty_like(bias)
    row = 0
    for i in range(0, q.shape[0], groups):
        group = slice(i, i + groups)
        own_k, own_v = _pad(k[group], groups), _pad(v[group], groups)
        for j in range(0, q.shape[2], queries):
            block = slice(j, j + queries)
            own_g, own_q = (_pad(x[group, :, block], groups, queries) for x in (g, q))
            own = None if bias is None else _pad(bias[group, block], groups, queries)
            part_q, part_k, part_v, part_bias = run(own_g, own_q, own_k, own_v, own, seed, seed.new_tensor(row), rate)
            out = g_q[group, :, block]
            out.copy_(part_q[: out.shape[0], :, : out.shape[2]])
            g_k[group] += part_k[: out.shape[0]]
            g_v[group] += part_v[: out.shape[0]]
            if g_bias is not None:
                out = g_bias[group, block]
                out.copy_(part_bias[: out.shape[0], : out.shape[1]])
            row += groups
    return g_q, g_k, g_v, g_bias


def _to_heads(x: Tensor, groups: int, parts: int, n_heads: int) -> Tensor:
    """[G T, parts D] -> [parts, G, H, T, d], contiguous."""
    return x.view(groups, -1, parts, n_heads, x.shape[-1] // (parts * n_heads)).permute(2, 0, 3, 1, 4).contiguous()


def _from_heads(*parts: Tensor) -> Tensor:
    """Tensors [G, H, T, d] -> [G T, parts D]."""
    x = torch.stack(parts)  # [parts, G, H, T, d]
    return x.permute(1, 3, 0, 2, 4).reshape(x.shape[1] * x.shape[3], -1)


def _project(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor, n_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Callable[..., Any], Callable[..., Any]]:
    """q, k and v [G, H, *, d], and the backward passes of the two products."""
    width = queries.shape[-1]
    low, low_bias = weight.to(dtype), bias.to(dtype)
    q, q_back = linear(queries.reshape(-1, width), low[:width], low_bias[:width])
    kv, kv_back = linear(keys.reshape(-1, width), low[width:], low_bias[width:])
    groups = len(queries)
    k, v = _to_heads(kv, groups, 2, n_heads).unbind(0)
    return _to_heads(q, groups, 1, n_heads)[0], k, v, q_back, kv_back


@torch.library.custom_op("pgat::attention", mutates_args=())
def _attention(
    queries: Tensor,
    keys: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    rate: float,
    n_heads: int,
    dtype: torch.dtype,
    compile_blocks: bool,
) -> Tensor:
    with fast_exact_float32():
        q, k, v, *_ = _project(queries, keys, weight, weight_bias, n_heads, dtype)
        o = _attend(q, k, v, bias, seed, rate, compile_blocks)
    return _from_heads(o).view(queries.shape)


@_attention.register_fake
def _(queries: Tensor, keys: Tensor, weight: Tensor, weight_bias: Tensor, bias: Tensor | None, seed: Tensor,
      rate: float, n_heads: int, dtype: torch.dtype, compile_blocks: bool) -> Tensor:  # fmt: skip
    return torch.empty(queries.shape, dtype=dtype, device=queries.device)


@torch.library.custom_op("pgat::attention_backward", mutates_args=())
def _attention_backward(
    g: Tensor,
    queries: Tensor,
    keys: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    rate: float,
    n_heads: int,
    dtype: torch.dtype,
    compile_blocks: bool,
) -> list[Tensor]:
    groups, _, width = queries.shape
    with fast_exact_float32():
        q, k, v, q_back, kv_back = _project(queries, keys, weight, weight_bias, n_heads, dtype)
        g_heads = _to_heads(g.reshape(-1, width), groups, 1, n_heads)[0]
        g_q, g_k, g_v, g_bias = _attend_backward(g_heads, q, k, v, bias, seed, rate, compile_blocks)
        g_queries, *g_first = q_back(_from_heads(g_q))
        g_keys, *g_second = kv_back(_from_heads(g_k, g_v))
    results = [
        g_queries.to(queries.dtype).view(queries.shape),
        g_keys.to(keys.dtype).view(keys.shape),
        *(torch.cat(parts).to(weight.dtype) for parts in zip(g_first, g_second, strict=True)),
    ]
    return results if g_bias is None else [*results, g_bias]


@_attention_backward.register_fake
def _(g: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, weight_bias: Tensor, bias: Tensor | None, seed: Tensor,
      rate: float, n_heads: int, dtype: torch.dtype, compile_blocks: bool) -> list[Tensor]:  # fmt: skip
    given = [x for x in (queries, keys, weight, weight_bias, bias) if x is not None]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in given]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, seed, rate, n_heads, dtype, compile_blocks = inputs
    ctx.plain = rate, n_heads, dtype, compile_blocks
    ctx.save_for_backward(*tensors, seed)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    results = _attention_backward(g.contiguous(), *ctx.saved_tensors, *ctx.plain)
    return *results, *(None,) * (10 - len(results))


_attention.register_autograd(_backward, setup_context=_setup_context)


def _flops(queries: Any, keys: Any) -> tuple[int, int]:
    """Of the projections, and of one product of queries and keys; shapes as the flop counter hands them."""
    groups, count, width = queries
    return 2 * groups * width * width * (count + 2 * keys[1]), 2 * groups * count * keys[1] * width


@register_flop_formula(torch.ops.pgat.attention)
def _(queries: Any, keys: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    projections, product = _flops(queries, keys)
    return projections + 2 * product


@register_flop_formula(torch.ops.pgat.attention_backward)
def _(g: Any, queries: Any, keys: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    projections, product = _flops(queries, keys)
    return 3 * projections + 5 * product  # projections and scores again; gradients of p, v, q, k


def attention(
    queries: Tensor,
    keys: Tensor,
    weight: Tensor,
    weight_bias: Tensor,
    bias: Tensor | None = None,
    *,
    n_heads: int,
    seed: Tensor,
    rate: float = 0.0,
    dtype: torch.dtype | None = None,
    compile_blocks: bool = False,
) -> Tensor:
    """Multi-head attention up to its output projection.

    Args:
        queries: tokens that ask, [G, Q, D], float32 or float64.
        keys: tokens that are asked, [G, T, D]; may be `queries`.
        weight, weight_bias: of queries, keys and values, [3 D, D] and [3 D]; 1 / sqrt(d) is in the query rows already.
        bias: added to the scores of all heads, [G, Q, T], at least float32; a hidden key has a large negative number
            (finite: an infinite one would make a row without any key NaN).
        n_heads: H.
        seed: int64 scalar, see `pgat_kernels.dropout.draw_seed`; not read where `rate` is 0.
        rate: dropout of the attention weights, [0, 1).
        dtype: of the products and the result: that of `queries` (the default), or bfloat16.
        compile_blocks: whether blocks are computed by compiled code, where they are large enough for that to pay.

    Returns:
        The heads' results side by side, [G, Q, D] in `dtype`. Softmax and its sums are at least float32.

    Reference: Dao et al., FlashAttention, 2022, for the order of the computation.
    """
    scores = queries.shape[0] * n_heads * queries.shape[1] * keys.shape[1]
    compile_blocks = compile_blocks and scores >= WORTH_COMPILING
    result: Tensor = _attention(
        queries, keys, weight, weight_bias, bias, seed, rate, n_heads, dtype or queries.dtype, compile_blocks
    )
    return result
