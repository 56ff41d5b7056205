"""Attention kernels for graphs of up to 512 tokens, whose scores do not fit into one program.

Limits: at most 512 tokens, head dimension at most 64, columns contiguous.

Grids, all one-dimensional, with the tiles of tokens that a program owns, TILES = ceil(tokens / BLOCK):

    forward            (graph, head, tile of queries): that tile of o and of the log-sum-exp of its scores
    backward, queries  (graph, head, tile of queries): that tile of dq, and of delta = rowsum(do o)
    backward, keys     (graph, head, tile of keys): that tile of dk and dv
    backward, bias     (graph, tile of queries, tile of keys): that tile of dbias, a sum over heads

The first three loop over the tiles of the other side (12 KB per head for 169 tokens in 16 bits, in cache after the
first read), the last over heads. Probabilities are recomputed from the log-sum-exp. Every output has one owner: there
are no atomics, and results do not depend on the order of the programs. A tile is 64 tokens: 169 tokens take three
tiles, where one of 256 would take 2.3 times the scores.

Heads of at most `FEW` columns (those of `pgat_kernels.ops.low_rank_attention` have 4) are multiplied column by column,
without `tl.dot`, which would pad them to 16: a product of two tiles is then a sum of a few outer products, and a
product of weights and rows a few weighted sums.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgat_kernels.ops.graph_inputs import GraphInputs, empty_like_rows, product_flops
from pgat_kernels.triton.dropout import keep_tile
from pgat_kernels.triton.launch import choose, graph_arguments, graph_tensors, launch, strides_of, tiles_of
from pgat_kernels.triton.tiles import HIDDEN, LOG2_E

FEW = 4
"""Columns of a head up to which products are computed column by column; also the columns of its tile."""
_FEW = tl.constexpr(FEW)


@triton.jit
def _column(x, c: tl.constexpr, BLOCK_DEPTH: tl.constexpr):
    """Return column `c` of x [BLOCK, BLOCK_DEPTH] as float32 [BLOCK]."""
    is_column = tl.arange(0, BLOCK_DEPTH)[None, :] == c
    return tl.sum(tl.where(is_column, x.to(tl.float32), 0.0), 1)


@triton.jit
def _rows_by_rows(x, y, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """Compute x y': [BLOCK, BLOCK_DEPTH] twice -> float32 [BLOCK, BLOCK]."""
    if DEPTH > _FEW:
        return tl.dot(x, tl.trans(y), input_precision=PRECISION)
    else:
        result = _column(x, 0, BLOCK_DEPTH)[:, None] * _column(y, 0, BLOCK_DEPTH)[None, :]
        for c in tl.static_range(1, DEPTH):
            result += _column(x, c, BLOCK_DEPTH)[:, None] * _column(y, c, BLOCK_DEPTH)[None, :]
        return result


@triton.jit
def _weights_by_rows(weights, y, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr, PRECISION: tl.constexpr):
    """Compute weights y: float32 [BLOCK, BLOCK] and [BLOCK, BLOCK_DEPTH] -> float32 [BLOCK, BLOCK_DEPTH]."""
    if DEPTH > _FEW:
        return tl.dot(weights.to(y.dtype), y, input_precision=PRECISION)
    else:
        column = tl.arange(0, BLOCK_DEPTH)[None, :]
        result = tl.zeros((weights.shape[0], BLOCK_DEPTH), tl.float32)
        for c in tl.static_range(DEPTH):
            total = tl.sum(weights * _column(y, c, BLOCK_DEPTH)[None, :], 1)
            result = tl.where(column == c, total[:, None], result)
        return result


@triton.jit
def _place(HEADS: tl.constexpr, NODES: tl.constexpr, BLOCK: tl.constexpr):
    """Return graph and head (int64) of the program, and the tokens of its tile."""
    TILES: tl.constexpr = (NODES + BLOCK - 1) // BLOCK
    program = tl.program_id(0).to(tl.int64)
    both = program // TILES
    tile = (program % TILES).to(tl.int32)
    return both // HEADS, both % HEADS, tile * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _load(
    ptr, graph, head, tokens,
    GRAPH: tl.constexpr, HEAD: tl.constexpr, NODE: tl.constexpr,
    NODES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    """Load rows `tokens` of one head: [BLOCK, BLOCK_DEPTH], zeros outside."""
    d = tl.arange(0, BLOCK_DEPTH)
    at = tokens[:, None] * NODE + d[None, :]
    return tl.load(
        ptr + (graph * GRAPH + head * HEAD) + at, mask=(tokens < NODES)[:, None] & (d < DEPTH)[None, :], other=0.0
    )


@triton.jit
def _store(
    ptr, x, graph, head, tokens,
    GRAPH: tl.constexpr, HEAD: tl.constexpr, NODE: tl.constexpr,
    NODES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    d = tl.arange(0, BLOCK_DEPTH)
    at = tokens[:, None] * NODE + d[None, :]
    tl.store(
        ptr + (graph * GRAPH + head * HEAD) + at,
        x.to(ptr.dtype.element_ty),
        mask=(tokens < NODES)[:, None] & (d < DEPTH)[None, :],
    )


@triton.jit
def _scores(
    products, adjacency_ptr, bias_ptr, threshold, scale, graph, queries, keys,
    NODES: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Compute scores times log2 e (float32) and the mask of visible keys (int1) from the products of queries and keys.

    `queries` and `keys` are a column and a row, or a row and a column: all results have their broadcast shape.
    """
    scores = products * (scale * LOG2_E)
    seen = (queries < NODES) & (keys < NODES)
    at = graph * (NODES * NODES) + (queries * NODES + keys)
    if BIASED:
        scores += tl.load(bias_ptr + at, mask=seen, other=0.0).to(tl.float32) * LOG2_E
    if MASKED:
        adjacency = tl.load(adjacency_ptr + at, mask=seen, other=0.0).to(tl.float32)
        seen = seen & ((tl.abs(adjacency) > threshold) | (queries == keys))
    return scores, seen


@triton.jit
def _keep(
    seed_ptr, first_row_ptr, site_offset, graph, head, queries, keys, dropped, HEADS: tl.constexpr, NODES: tl.constexpr
):  # fmt: skip
    """Return the dropout mask of weights, int1, in the shape of `_scores`."""
    rows = ((tl.load(first_row_ptr) + graph) * HEADS + head) * NODES + queries
    return keep_tile(tl.load(seed_ptr), site_offset, rows, keys, dropped, NODES)


@triton.jit
def _load_statistics(
    log_sum_exp_ptr, delta_ptr, graph, head, queries, HEADS: tl.constexpr, NODES: tl.constexpr
):  # fmt: skip
    """Load the log-sum-exp of the scores of each query, times log2 e, and delta; zeros outside."""
    at = (graph * HEADS + head) * NODES + queries
    log_sum_exp = tl.load(log_sum_exp_ptr + at, mask=queries < NODES, other=0.0) * LOG2_E
    return log_sum_exp, tl.load(delta_ptr + at, mask=queries < NODES, other=0.0)


@triton.jit
def _score_gradients(
    products, dweights, log_sum_exp, delta, adjacency_ptr, bias_ptr, seed_ptr, first_row_ptr,
    threshold, scale, site_offset, dropped, kept_scale, graph, head, queries, keys,
    HEADS: tl.constexpr, NODES: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Recompute the weights of a tile after dropout, and compute the gradient of its scores.

    Both are float32 in the shape of `_scores`, as are `products` of q and k, and `dweights`, those of do and v.
    `log_sum_exp` and `delta` have the shape of `queries`.
    """
    scores, seen = _scores(
        products, adjacency_ptr, bias_ptr, threshold, scale, graph, queries, keys, NODES, MASKED, BIASED
    )
    weights = tl.where(seen, tl.exp2(tl.where(seen, scores, HIDDEN) - log_sum_exp), 0.0)
    kept = weights
    if DROPOUT:
        keep = _keep(seed_ptr, first_row_ptr, site_offset, graph, head, queries, keys, dropped, HEADS, NODES)
        kept = tl.where(keep, weights * kept_scale, 0.0)
        dweights = tl.where(keep, dweights * kept_scale, 0.0)
    return kept, weights * (dweights - delta)


@triton.jit
def _edge_attention_fwd_kernel(
    q_ptr,  # [G, H, T, d], as k_ptr, v_ptr, o_ptr; d contiguous
    k_ptr,
    v_ptr,
    adjacency_ptr,  # [G, T, T] contiguous, as bias_ptr
    bias_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    o_ptr,
    log_sum_exp_ptr,  # [G, H, T] float32 contiguous
    graphs, scale, threshold, site_offset, dropped, kept_scale,
    Q_GRAPH: tl.constexpr, Q_HEAD: tl.constexpr, Q_NODE: tl.constexpr,
    K_GRAPH: tl.constexpr, K_HEAD: tl.constexpr, K_NODE: tl.constexpr,
    V_GRAPH: tl.constexpr, V_HEAD: tl.constexpr, V_NODE: tl.constexpr,
    O_GRAPH: tl.constexpr, O_HEAD: tl.constexpr, O_NODE: tl.constexpr,
    HEADS: tl.constexpr, NODES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a tile of o, and the log-sum-exp of its scores; keeps running maxima and sums over the tiles of keys."""
    graph, head, queries = _place(HEADS, NODES, BLOCK)
    q = _load(q_ptr, graph, head, queries, Q_GRAPH, Q_HEAD, Q_NODE, NODES, DEPTH, BLOCK_DEPTH)
    largest = tl.full((BLOCK,), HIDDEN, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, BLOCK_DEPTH), tl.float32)
    for start in range(0, NODES, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _load(k_ptr, graph, head, keys, K_GRAPH, K_HEAD, K_NODE, NODES, DEPTH, BLOCK_DEPTH)
        v = _load(v_ptr, graph, head, keys, V_GRAPH, V_HEAD, V_NODE, NODES, DEPTH, BLOCK_DEPTH)
        products = _rows_by_rows(q, k, DEPTH, BLOCK_DEPTH, PRECISION)
        scores, seen = _scores(
            products, adjacency_ptr, bias_ptr, threshold, scale, graph, queries[:, None], keys[None, :],
            NODES, MASKED, BIASED,
        )  # fmt: skip
        scores = tl.where(seen, scores, HIDDEN)
        larger = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp2(largest - larger)
        weights = tl.where(seen, tl.exp2(scores - larger[:, None]), 0.0)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            keep = _keep(
                seed_ptr,
                first_row_ptr,
                site_offset,
                graph,
                head,
                queries[:, None],
                keys[None, :],
                dropped,
                HEADS,
                NODES,
            )
            weights = tl.where(keep, weights * kept_scale, 0.0)
        o = o * shrink[:, None] + _weights_by_rows(weights, v, DEPTH, BLOCK_DEPTH, PRECISION)
        largest = larger
    total = tl.where(total == 0, 1.0, total)
    o = o / total[:, None]
    _store(o_ptr, o, graph, head, queries, O_GRAPH, O_HEAD, O_NODE, NODES, DEPTH, BLOCK_DEPTH)
    at = (graph * HEADS + head) * NODES + queries
    tl.store(log_sum_exp_ptr + at, (largest + tl.log2(total)) / LOG2_E, mask=queries < NODES)


@triton.jit
def _edge_attention_bwd_queries_kernel(
    do_ptr,  # [G, H, T, d], gradient of o, as q_ptr, k_ptr, v_ptr; d contiguous
    q_ptr,
    k_ptr,
    v_ptr,
    adjacency_ptr,  # [G, T, T] contiguous, as bias_ptr
    bias_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    o_ptr,  # [G, H, T, d], as dq_ptr, which has its strides
    log_sum_exp_ptr,  # [G, H, T] float32 contiguous, as delta_ptr
    dq_ptr,
    delta_ptr,
    graphs, scale, threshold, site_offset, dropped, kept_scale,
    DO_GRAPH: tl.constexpr, DO_HEAD: tl.constexpr, DO_NODE: tl.constexpr,
    Q_GRAPH: tl.constexpr, Q_HEAD: tl.constexpr, Q_NODE: tl.constexpr,
    K_GRAPH: tl.constexpr, K_HEAD: tl.constexpr, K_NODE: tl.constexpr,
    V_GRAPH: tl.constexpr, V_HEAD: tl.constexpr, V_NODE: tl.constexpr,
    O_GRAPH: tl.constexpr, O_HEAD: tl.constexpr, O_NODE: tl.constexpr,
    HEADS: tl.constexpr, NODES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a tile of dq, and delta = rowsum(do o), which the other two backward kernels read."""
    graph, head, queries = _place(HEADS, NODES, BLOCK)
    q = _load(q_ptr, graph, head, queries, Q_GRAPH, Q_HEAD, Q_NODE, NODES, DEPTH, BLOCK_DEPTH)
    do = _load(do_ptr, graph, head, queries, DO_GRAPH, DO_HEAD, DO_NODE, NODES, DEPTH, BLOCK_DEPTH)
    o = _load(o_ptr, graph, head, queries, O_GRAPH, O_HEAD, O_NODE, NODES, DEPTH, BLOCK_DEPTH)
    at = (graph * HEADS + head) * NODES + queries
    log_sum_exp = tl.load(log_sum_exp_ptr + at, mask=queries < NODES, other=0.0) * LOG2_E
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta_ptr + at, delta, mask=queries < NODES)
    dq = tl.zeros((BLOCK, BLOCK_DEPTH), tl.float32)
    for start in range(0, NODES, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        k = _load(k_ptr, graph, head, keys, K_GRAPH, K_HEAD, K_NODE, NODES, DEPTH, BLOCK_DEPTH)
        v = _load(v_ptr, graph, head, keys, V_GRAPH, V_HEAD, V_NODE, NODES, DEPTH, BLOCK_DEPTH)
        products = _rows_by_rows(q, k, DEPTH, BLOCK_DEPTH, PRECISION)
        dweights = _rows_by_rows(do, v, DEPTH, BLOCK_DEPTH, PRECISION)
        _, dscores = _score_gradients(
            products, dweights, log_sum_exp[:, None], delta[:, None], adjacency_ptr, bias_ptr, seed_ptr, first_row_ptr,
            threshold, scale, site_offset, dropped, kept_scale, graph, head, queries[:, None], keys[None, :],
            HEADS, NODES, MASKED, BIASED, DROPOUT,
        )  # fmt: skip
        dq += _weights_by_rows(dscores, k, DEPTH, BLOCK_DEPTH, PRECISION)
    _store(dq_ptr, dq * scale, graph, head, queries, O_GRAPH, O_HEAD, O_NODE, NODES, DEPTH, BLOCK_DEPTH)


@triton.jit
def _edge_attention_bwd_keys_kernel(
    do_ptr,  # [G, H, T, d], gradient of o, as q_ptr, k_ptr, v_ptr; d contiguous
    q_ptr,
    k_ptr,
    v_ptr,
    adjacency_ptr,  # [G, T, T] contiguous, as bias_ptr
    bias_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    log_sum_exp_ptr,  # [G, H, T] float32 contiguous, as delta_ptr
    delta_ptr,
    dk_ptr,  # [G, H, T, d] with the strides of o, as dv_ptr
    dv_ptr,
    graphs, scale, threshold, site_offset, dropped, kept_scale,
    DO_GRAPH: tl.constexpr, DO_HEAD: tl.constexpr, DO_NODE: tl.constexpr,
    Q_GRAPH: tl.constexpr, Q_HEAD: tl.constexpr, Q_NODE: tl.constexpr,
    K_GRAPH: tl.constexpr, K_HEAD: tl.constexpr, K_NODE: tl.constexpr,
    V_GRAPH: tl.constexpr, V_HEAD: tl.constexpr, V_NODE: tl.constexpr,
    O_GRAPH: tl.constexpr, O_HEAD: tl.constexpr, O_NODE: tl.constexpr,
    HEADS: tl.constexpr, NODES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a tile of dk and dv."""
    graph, head, keys = _place(HEADS, NODES, BLOCK)
    k = _load(k_ptr, graph, head, keys, K_GRAPH, K_HEAD, K_NODE, NODES, DEPTH, BLOCK_DEPTH)
    v = _load(v_ptr, graph, head, keys, V_GRAPH, V_HEAD, V_NODE, NODES, DEPTH, BLOCK_DEPTH)
    dk = tl.zeros((BLOCK, BLOCK_DEPTH), tl.float32)
    dv = tl.zeros((BLOCK, BLOCK_DEPTH), tl.float32)
    for start in range(0, NODES, BLOCK):
        queries = start + tl.arange(0, BLOCK)
        q = _load(q_ptr, graph, head, queries, Q_GRAPH, Q_HEAD, Q_NODE, NODES, DEPTH, BLOCK_DEPTH)
        do = _load(do_ptr, graph, head, queries, DO_GRAPH, DO_HEAD, DO_NODE, NODES, DEPTH, BLOCK_DEPTH)
        log_sum_exp, delta = _load_statistics(log_sum_exp_ptr, delta_ptr, graph, head, queries, HEADS, NODES)
        # Transposed, [keys, queries], so that the sums over queries are products of rows.
        products = _rows_by_rows(k, q, DEPTH, BLOCK_DEPTH, PRECISION)
        dweights = _rows_by_rows(v, do, DEPTH, BLOCK_DEPTH, PRECISION)
        kept, dscores = _score_gradients(
            products, dweights, log_sum_exp[None, :], delta[None, :], adjacency_ptr, bias_ptr, seed_ptr, first_row_ptr,
            threshold, scale, site_offset, dropped, kept_scale, graph, head, queries[None, :], keys[:, None],
            HEADS, NODES, MASKED, BIASED, DROPOUT,
        )  # fmt: skip
        dv += _weights_by_rows(kept, do, DEPTH, BLOCK_DEPTH, PRECISION)
        dk += _weights_by_rows(dscores, q, DEPTH, BLOCK_DEPTH, PRECISION)
    _store(dk_ptr, dk * scale, graph, head, keys, O_GRAPH, O_HEAD, O_NODE, NODES, DEPTH, BLOCK_DEPTH)
    _store(dv_ptr, dv, graph, head, keys, O_GRAPH, O_HEAD, O_NODE, NODES, DEPTH, BLOCK_DEPTH)


@triton.jit
def _edge_attention_bwd_bias_kernel(
    do_ptr,  # [G, H, T, d], gradient of o, as q_ptr, k_ptr, v_ptr; d contiguous
    q_ptr,
    k_ptr,
    v_ptr,
    adjacency_ptr,  # [G, T, T] contiguous, as bias_ptr
    bias_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    log_sum_exp_ptr,  # [G, H, T] float32 contiguous, as delta_ptr
    delta_ptr,
    dbias_ptr,  # [G, T, T] float32 contiguous
    graphs, scale, threshold, site_offset, dropped, kept_scale,
    DO_GRAPH: tl.constexpr, DO_HEAD: tl.constexpr, DO_NODE: tl.constexpr,
    Q_GRAPH: tl.constexpr, Q_HEAD: tl.constexpr, Q_NODE: tl.constexpr,
    K_GRAPH: tl.constexpr, K_HEAD: tl.constexpr, K_NODE: tl.constexpr,
    V_GRAPH: tl.constexpr, V_HEAD: tl.constexpr, V_NODE: tl.constexpr,
    HEADS: tl.constexpr, NODES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write a tile of dbias, a sum over heads."""
    TILES: tl.constexpr = (NODES + BLOCK - 1) // BLOCK
    graph, tile, keys = _place(TILES, NODES, BLOCK)
    queries = tile.to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    dbias = tl.zeros((BLOCK, BLOCK), tl.float32)
    for head in range(HEADS):
        q = _load(q_ptr, graph, head, queries, Q_GRAPH, Q_HEAD, Q_NODE, NODES, DEPTH, BLOCK_DEPTH)
        k = _load(k_ptr, graph, head, keys, K_GRAPH, K_HEAD, K_NODE, NODES, DEPTH, BLOCK_DEPTH)
        v = _load(v_ptr, graph, head, keys, V_GRAPH, V_HEAD, V_NODE, NODES, DEPTH, BLOCK_DEPTH)
        do = _load(do_ptr, graph, head, queries, DO_GRAPH, DO_HEAD, DO_NODE, NODES, DEPTH, BLOCK_DEPTH)
        log_sum_exp, delta = _load_statistics(log_sum_exp_ptr, delta_ptr, graph, head, queries, HEADS, NODES)
        products = _rows_by_rows(q, k, DEPTH, BLOCK_DEPTH, PRECISION)
        dweights = _rows_by_rows(do, v, DEPTH, BLOCK_DEPTH, PRECISION)
        _, dscores = _score_gradients(
            products, dweights, log_sum_exp[:, None], delta[:, None], adjacency_ptr, bias_ptr, seed_ptr, first_row_ptr,
            threshold, scale, site_offset, dropped, kept_scale, graph, head, queries[:, None], keys[None, :],
            HEADS, NODES, MASKED, BIASED, DROPOUT,
        )  # fmt: skip
        dbias += dscores
    inside = (queries < NODES)[:, None] & (keys < NODES)[None, :]
    at_bias = graph * (NODES * NODES) + queries[:, None] * NODES + keys[None, :]
    tl.store(dbias_ptr + at_bias, dbias, mask=inside)


def _name(inputs: GraphInputs) -> str:
    """Return the name under which `launch_configs` has the configurations of these inputs."""
    if inputs.q.shape[-1] <= FEW:
        return "low_rank_attention"
    return "edge_attention" if inputs.adjacency is None and inputs.bias is None else "masked_edge_attention"


def _arguments(inputs: GraphInputs) -> dict[str, object]:
    """Return the arguments that all kernels of this module share, by name."""
    arguments = graph_arguments(inputs)
    return arguments | ({"BLOCK_DEPTH": FEW} if inputs.q.shape[-1] <= FEW else {})


def edge_attention_forward(inputs: GraphInputs) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel; return the result and the log-sum-exp of the scores."""
    q = inputs.q
    graphs, heads, tokens, _ = q.shape
    o = empty_like_rows(q)
    log_sum_exp = torch.empty((graphs, heads, tokens), dtype=torch.float32, device=q.device)
    chosen = choose(f"{_name(inputs)} forward", q, tokens)
    launch(
        _edge_attention_fwd_kernel, graphs * heads * tiles_of(tokens, chosen), (*graph_tensors(inputs), o, log_sum_exp),
        chosen, 2 * product_flops(q.shape),
        **_arguments(inputs), **strides_of(q=q, k=inputs.k, v=inputs.v, o=o),
    )  # fmt: skip
    return o, log_sum_exp


def edge_attention_backward(do: Tensor, inputs: GraphInputs, o: Tensor, log_sum_exp: Tensor) -> list[Tensor]:
    """Launch the backward kernels; return gradients of q, k, v and the bias, if there is one.

    `o` and `log_sum_exp` are the results of `edge_attention_forward`, `do` is the gradient of `o`.
    """
    q, bias = inputs.q, inputs.bias
    graphs, heads, tokens, _ = q.shape
    dq, dk, dv = (empty_like_rows(q) for _ in range(3))
    delta = torch.empty_like(log_sum_exp)
    common = _arguments(inputs) | strides_of(do=do, q=q, k=inputs.k, v=inputs.v)
    flops = product_flops(q.shape)

    def run(kernel: Any, name: str, products: int, tensors: tuple[Tensor, ...], **strides: int) -> None:
        """Launch a kernel of which a program owns a tile of tokens of one head."""
        chosen = choose(f"{_name(inputs)} backward {name}", q, tokens)
        programs = graphs * heads * tiles_of(tokens, chosen)
        launch(kernel, programs, (do, *graph_tensors(inputs), *tensors), chosen, products * flops, **common, **strides)

    of_result = strides_of(o=o)
    run(_edge_attention_bwd_queries_kernel, "queries", 3, (o, log_sum_exp, dq, delta), **of_result)
    run(_edge_attention_bwd_keys_kernel, "keys", 4, (log_sum_exp, delta, dk, dv), **of_result)
    if bias is None:
        return [dq, dk, dv]
    dbias = torch.empty(bias.shape, dtype=torch.float32, device=bias.device)
    chosen = choose("edge_attention backward bias", q, tokens)
    tensors = (do, *graph_tensors(inputs), log_sum_exp, delta, dbias)
    programs = graphs * tiles_of(tokens, chosen) ** 2
    launch(_edge_attention_bwd_bias_kernel, programs, tensors, chosen, 2 * flops, **common)
    return [dq, dk, dv, dbias]
