"""Multi-head attention that never holds all attention weights (rewrite 8).

Queries are processed in blocks: scores against all keys, softmax, dropout and the weighted sum of the values of one
block are computed before the next block begins. The backward pass recomputes the projections and the weights of a
block, with the same dropout mask. Only the tokens are kept. Memory is linear in their number, and a block stays in the
cache of a processor.

On a CPU the forward pass without dropout is one call of torch's flash attention, which does not support dropout there.
On a GPU it is torch's fused attention, if there is no bias of the scores and no gradients that must be repeatable to
the bit: torch makes the backward pass of its fused kernels repeatable only with `warn_only=False`. It keeps queries,
keys, values, result and a number for each row of scores, and draws dropout masks from torch's generator instead of the
seed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from pgat_kernels.instrumentation import chunk_device_type
from pgat_kernels.matmul_precision import fast_exact_float32, no_autocast
from pgat_kernels.ops.chunk_sizes import auto_chunk, starts
from pgat_kernels.ops.compiled import how_compiled
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.vjp import attend, linear, merge_heads, split_heads

WORTH_COMPILING = 2**22
"""Number of scores of all heads below which a compiled block saves less time than its compilation takes."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Of queries, keys, values and, if there is one, the bias."""


def _forward_block(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, masks: Masks) -> Tensor:
    """Attend from queries [G, H, C, d] to keys and values [G, H, T, d], with a bias of the scores [G, C, T]."""
    return attend(q, k, v, bias, masks, 0)[0]()


def _backward_block(g: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, masks: Masks) -> Gradients:
    """Compute gradients of the arguments of `_forward_block`, those of k and v in at least float32."""
    acc_dtype = torch.promote_types(q.dtype, torch.float32)
    g_q, g_k, g_v, g_bias = attend(q, k, v, bias, masks, 0)[1](g)
    return g_q, g_k.to(acc_dtype), g_v.to(acc_dtype), g_bias


class _Block(NamedTuple):
    """Ranges of groups, heads and queries that are computed at a time, and the shape to which they are padded."""

    group: slice
    head: slice
    query: slice
    shape: tuple[int, int, int]

    def of_queries(self, x: Tensor) -> Tensor:
        """Return the part of [G, H, Q, ...] in the block, zero-padded to its shape."""
        groups, _, queries = self.shape
        part = x[self.group, self.head, self.query]
        missing = groups - part.shape[0], queries - part.shape[2]
        return F.pad(part, (0, 0) * (x.dim() - 3) + (0, missing[1], 0, 0, 0, missing[0])) if any(missing) else part

    def of_keys(self, x: Tensor) -> Tensor:
        """Return the part of [G, H, T, d] in the block, zero-padded to its number of groups."""
        part = x[self.group, self.head]
        missing = self.shape[0] - part.shape[0]
        return F.pad(part, (0, 0) * 3 + (0, missing)) if missing else part

    def of_bias(self, x: Tensor | None) -> Tensor | None:
        """Return the part of [G, Q, T] in the block, zero-padded to its shape."""
        return None if x is None else self._replace(head=slice(None)).of_queries(x[:, None])[:, 0]


def _blocks(q: Tensor, k: Tensor) -> list[_Block]:
    """Split the work into blocks: several whole groups if they are small, else parts of one group.

    On a CPU a part has at most as many heads as there are threads: every thread works on one head, whose keys and
    values stay in its cache for more queries.
    """
    groups, heads, queries, _ = q.shape
    a_query = 4 * k.shape[2]  # bytes of the scores of one query and head
    groups_per_block, heads_per_block, queries_per_block = 1, heads, auto_chunk(queries, a_query * heads, q.device)
    if queries_per_block == queries:
        groups_per_block = auto_chunk(groups, a_query * heads * queries, q.device)
    elif chunk_device_type(q.device) == "cpu":
        heads_per_block = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= torch.get_num_threads())
        queries_per_block = auto_chunk(queries, a_query * heads_per_block, q.device)
    return [
        _Block(
            slice(i, i + groups_per_block),
            slice(h, h + heads_per_block),
            slice(j, j + queries_per_block),
            (groups_per_block, heads_per_block, queries_per_block),
        )
        for i in starts(groups, groups_per_block)
        for h in starts(heads, heads_per_block)
        for j in starts(queries, queries_per_block)
    ]


def _row_numbers(q: Tensor) -> Tensor:
    """Number the queries of all heads, [G, H, Q], so that dropout does not depend on the blocks."""
    shape = q.shape[:3]
    return torch.arange(shape.numel(), device=q.device).view(shape)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, seed: Tensor, rate: float, compile_blocks: bool
) -> Tensor:
    """Compute attention in blocks: [G, H, Q, d], [G, H, T, d] -> [G, H, Q, d]."""
    if rate == 0 and q.device.type == "cpu" and (bias is None or bias.dtype == q.dtype):
        return F.scaled_dot_product_attention(q, k, v, None if bias is None else bias[:, None], scale=1.0)
    run, fragments = how_compiled(_forward_block, compile_blocks, q.device)
    result = torch.empty_like(q)
    rows = _row_numbers(q)
    for block in _blocks(q, k):
        operands = [block.of_queries(q), block.of_keys(k), block.of_keys(v), block.of_bias(bias)]
        y = run(*operands, Masks(rate, seed, block.of_queries(rows).reshape(-1), fragments))
        out = result[block.group, block.head, block.query]
        out.copy_(y[: out.shape[0], :, : out.shape[2]])
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
) -> Gradients:
    """Compute gradients of q, k, v and bias; those of k, v and bias, sums over blocks, are at least float32."""
    run, fragments = how_compiled(_backward_block, compile_blocks, q.device)
    acc_dtype = torch.promote_types(q.dtype, torch.float32)
    g_q = torch.empty_like(q)
    g_k, g_v = (torch.zeros(x.shape, dtype=acc_dtype, device=x.device) for x in (k, v))
    g_bias = None if bias is None else torch.zeros_like(bias, memory_format=torch.contiguous_format)
    rows = _row_numbers(q)
    for block in _blocks(q, k):
        operands = [block.of_queries(g), block.of_queries(q), block.of_keys(k), block.of_keys(v), block.of_bias(bias)]
        part_q, part_k, part_v, part_bias = run(
            *operands, Masks(rate, seed, block.of_queries(rows).reshape(-1), fragments)
        )
        out = g_q[block.group, block.head, block.query]
        out.copy_(part_q[: out.shape[0], :, : out.shape[2]])
        for total, part in ((g_k, part_k), (g_v, part_v)):
            out = total[block.group, block.head]
            out += part[: out.shape[0]]
        if g_bias is not None:
            out = g_bias[block.group, block.query]
            out += part_bias[: out.shape[0], : out.shape[1]]
    return g_q, g_k, g_v, g_bias


def _project(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor, n_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Callable[..., Any], Callable[..., Any]]:
    """Return q, k and v [G, H, *, d] and the backward passes of the two products."""
    width = queries.shape[-1]
    cast_weight, cast_bias = weight.to(dtype), bias.to(dtype)
    q, q_back = linear(queries.reshape(-1, width), cast_weight[:width], cast_bias[:width])
    kv, kv_back = linear(keys.reshape(-1, width), cast_weight[width:], cast_bias[width:])
    groups = len(queries)
    k, v = split_heads(kv, groups, 2, n_heads).unbind(0)
    return split_heads(q, groups, 1, n_heads)[0], k, v, q_back, kv_back


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
    with fast_exact_float32(), no_autocast(queries.device):
        q, k, v, *_ = _project(queries, keys, weight, weight_bias, n_heads, dtype)
        o = _attend(q, k, v, bias, seed, rate, compile_blocks)
    return merge_heads(o).view(queries.shape)


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
    with fast_exact_float32(), no_autocast(queries.device):
        q, k, v, q_back, kv_back = _project(queries, keys, weight, weight_bias, n_heads, dtype)
        g_heads = split_heads(g.reshape(-1, width), groups, 1, n_heads)[0]
        g_q, g_k, g_v, g_bias = _attend_backward(g_heads, q, k, v, bias, seed, rate, compile_blocks)
        g_queries, *g_first = q_back(merge_heads(g_q))
        g_keys, *g_second = kv_back(merge_heads(g_k, g_v))
    results = [
        g_queries.to(queries.dtype).view(queries.shape),
        g_keys.to(keys.dtype).view(keys.shape),
        *(torch.cat(parts).to(weight.dtype) for parts in zip(g_first, g_second, strict=True)),
    ]
    return results if g_bias is None else [*results, g_bias]


@_attention_backward.register_fake
def _(g: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, weight_bias: Tensor, bias: Tensor | None, seed: Tensor,
      rate: float, n_heads: int, dtype: torch.dtype, compile_blocks: bool) -> list[Tensor]:  # fmt: skip
    inputs = [x for x in (queries, keys, weight, weight_bias, bias) if x is not None]
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, seed, rate, n_heads, dtype, compile_blocks = inputs
    ctx.plain = rate, n_heads, dtype, compile_blocks
    ctx.save_for_backward(*tensors, seed)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    results = _attention_backward(g.contiguous(), *ctx.saved_tensors, *ctx.plain)
    return *results, *(None,) * (10 - len(results))


_attention.register_autograd(_backward, setup_context=_setup_context)


def _flops(queries: Any, keys: Any) -> tuple[int, int]:
    """Return the FLOPs of the projections and of one product of queries and keys, from the FLOP counter's shapes."""
    groups, count, width = queries
    return 2 * groups * width * width * (count + 2 * keys[1]), 2 * groups * count * keys[1] * width


@register_flop_formula(torch.ops.pgat.attention)
def _(queries: Any, keys: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    projections, product = _flops(queries, keys)
    return projections + 2 * product


@register_flop_formula(torch.ops.pgat.attention_backward)
def _(g: Any, queries: Any, keys: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    projections, product = _flops(queries, keys)
    return 3 * projections + 5 * product  # recomputed projections and scores; gradients of p, v, q, k


def _fused_attention(
    queries: Tensor, keys: Tensor, weight: Tensor, weight_bias: Tensor, n_heads: int, rate: float, dtype: torch.dtype
) -> Tensor:
    """Compute `attention` by torch's fused kernels, which autograd differentiates.

    Heads are padded with zeros to a multiple of 8 columns, which all of these kernels support, in the weights.
    """
    depth = queries.shape[-1] // n_heads
    padding = -depth % 8
    weight = F.pad(weight.to(dtype).unflatten(0, (-1, depth)), (0, 0, 0, padding)).flatten(0, 1)
    weight_bias = F.pad(weight_bias.to(dtype).unflatten(0, (-1, depth)), (0, padding)).flatten()
    width = n_heads * (depth + padding)
    q = F.linear(queries.to(dtype), weight[:width], weight_bias[:width])
    kv = F.linear(keys.to(dtype), weight[width:], weight_bias[width:])
    q, k, v = (x.unflatten(-1, (n_heads, -1)).transpose(1, 2) for x in (q, *kv.chunk(2, dim=-1)))
    o = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, scale=1.0)
    return o[..., :depth].transpose(1, 2).flatten(2)


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
    repeatable: bool = True,
) -> Tensor:
    """Compute multi-head attention without its output projection.

    Args:
        queries: query tokens, [G, Q, D], float32 or float64.
        keys: key tokens, [G, T, D]; may be `queries`.
        weight, weight_bias: projections to queries, keys and values, [3 D, D] and [3 D]; the query rows include the
            factor 1 / sqrt(d).
        bias: added to the scores of all heads, [G, Q, T], at least float32; a hidden key has a large negative number
            (finite: an infinite one would make a row without any key NaN).
        n_heads: H.
        seed: int64 scalar, see `pgat_kernels.ops.dropout.draw_seed`; not read if `rate` is 0, nor by the fused
            attention of a GPU.
        rate: dropout rate of the attention weights, [0, 1).
        dtype: of the products and the result: that of `queries` (the default), or a 16-bit one.
        compile_blocks: whether compiled code computes blocks that are large enough to be worth compiling.
        repeatable: whether gradients on a GPU must be the same to the bit each time.

    Returns:
        The results of the heads side by side, [G, Q, D] in `dtype`. Softmax and its sums are at least float32.

    Reference: Dao et al., FlashAttention, 2022, for the order of the computation.
    """
    dtype = dtype or queries.dtype
    may_be_fused = not repeatable or not torch.is_grad_enabled()
    if bias is None and may_be_fused and chunk_device_type(queries.device) == "cuda":
        return _fused_attention(queries, keys, weight, weight_bias, n_heads, rate, dtype)
    scores = queries.shape[0] * n_heads * queries.shape[1] * keys.shape[1]
    compile_blocks = compile_blocks and scores >= WORTH_COMPILING
    return _attention(queries, keys, weight, weight_bias, bias, seed, rate, n_heads, dtype, compile_blocks)
