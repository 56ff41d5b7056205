"""Attention kernels for many small graphs, several of which one program holds.

Limits: at most 64 nodes, head dimension at most 64, columns contiguous.

Grid: one dimension; program i owns graphs i P to i P + P - 1 with all their heads, P = BLOCK // NODES, and writes all
their outputs, including the gradient of the bias, which is a sum over heads: there are no atomics, and results do not
depend on the order of the programs. The rows of a tile are the nodes of its P graphs in sequence; scores between nodes
of different graphs are hidden. So BLOCK is 64 rows for 13 nodes, enough for the widest tensor-core instructions, and a
pass over a head is one product however small the graphs are. The wasted operations cost less than reading the inputs,
which bounds the kernel.

The backward pass recomputes scores, softmax and dropout masks; only the inputs are kept. The gradient of the bias, if
there is one, takes a second pass over the heads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgat_kernels.ops.graph_inputs import GraphInputs, empty_like_rows, product_flops
from pgat_kernels.triton.dropout import keep_weights
from pgat_kernels.triton.launch import choose, graph_arguments, graph_tensors, launch, pointer_or, strides_of
from pgat_kernels.triton.tiles import HIDDEN, LOG2_E


@triton.jit
def _rows(graphs, NODES: tl.constexpr, BLOCK: tl.constexpr):
    """Return the first graph of the program (int64), and for every row the index of its graph within the program, its
    node, and whether it exists."""
    PACK: tl.constexpr = BLOCK // NODES
    rows = tl.arange(0, BLOCK)
    first = tl.program_id(0).to(tl.int64) * PACK
    place = rows // NODES
    return first, place, rows % NODES, (place < PACK) & (first + place < graphs)


@triton.jit
def _bias(
    adjacency_ptr, bias_ptr, threshold, first, place, node, exists,
    NODES: tl.constexpr, MASKED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Return the bias of the scores, times log2 e: [BLOCK, BLOCK]. Hidden keys have the bias `HIDDEN`.

    No existing row is hidden from itself, so hidden keys get the weight 0. Padding rows get arbitrary finite weights;
    they are only multiplied by zeros, and are not written.
    """
    inside = (place[:, None] == place[None, :]) & exists[:, None] & exists[None, :]
    at = first * (NODES * NODES) + _matrix_offsets(place, node, NODES)
    bias = tl.where(inside, 0.0, HIDDEN)
    if BIASED:
        bias += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32) * LOG2_E
    if MASKED:
        adjacency = tl.load(adjacency_ptr + at, mask=inside, other=0.0).to(tl.float32)
        bias = tl.where((tl.abs(adjacency) > threshold) | (node[:, None] == node[None, :]), bias, HIDDEN)
    return bias


@triton.jit
def _matrix_offsets(place, node, NODES: tl.constexpr):
    """Return offsets into [G, NODES, NODES] of the columns in the own graph of every row, from the first graph on."""
    return (place * (NODES * NODES) + node * NODES)[:, None] + node[None, :]


@triton.jit
def _offsets(place, node, GRAPH: tl.constexpr, NODE: tl.constexpr, BLOCK_DEPTH: tl.constexpr):
    """Return offsets of the rows in a tensor [G, H, T, d] from a head of the first graph on: [BLOCK, BLOCK_DEPTH].

    They have 32 bits and are the same for tensors of the same strides: addresses would take most of the registers.
    """
    return (place * GRAPH + node * NODE)[:, None] + tl.arange(0, BLOCK_DEPTH)[None, :]


@triton.jit
def _softmax(q, k, bias, scale, PRECISION: tl.constexpr):
    """Compute the attention weights of one head, float32 [BLOCK, BLOCK]."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E) + bias
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _graph_attention_fwd_kernel(
    q_ptr,  # [G, H, T, d], as k_ptr, v_ptr, o_ptr; d contiguous
    k_ptr,
    v_ptr,
    adjacency_ptr,  # [G, T, T] contiguous, as bias_ptr
    bias_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    o_ptr,
    graphs, scale, threshold, site_offset, dropped, kept_scale,
    Q_GRAPH: tl.constexpr, Q_HEAD: tl.constexpr, Q_NODE: tl.constexpr,
    K_GRAPH: tl.constexpr, K_HEAD: tl.constexpr, K_NODE: tl.constexpr,
    V_GRAPH: tl.constexpr, V_HEAD: tl.constexpr, V_NODE: tl.constexpr,
    O_GRAPH: tl.constexpr, O_HEAD: tl.constexpr, O_NODE: tl.constexpr,
    HEADS: tl.constexpr, NODES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the rows of o of the program's graphs, one head after the other."""
    first, place, node, exists = _rows(graphs, NODES, BLOCK)
    bias = _bias(adjacency_ptr, bias_ptr, threshold, first, place, node, exists, NODES, MASKED, BIASED)
    inside = exists[:, None] & (tl.arange(0, BLOCK_DEPTH) < DEPTH)[None, :]
    q_at = _offsets(place, node, Q_GRAPH, Q_NODE, BLOCK_DEPTH)
    k_at = _offsets(place, node, K_GRAPH, K_NODE, BLOCK_DEPTH)
    v_at = _offsets(place, node, V_GRAPH, V_NODE, BLOCK_DEPTH)
    o_at = _offsets(place, node, O_GRAPH, O_NODE, BLOCK_DEPTH)
    for head in range(HEADS):
        q = tl.load(q_ptr + (first * Q_GRAPH + head * Q_HEAD) + q_at, mask=inside, other=0.0)
        k = tl.load(k_ptr + (first * K_GRAPH + head * K_HEAD) + k_at, mask=inside, other=0.0)
        v = tl.load(v_ptr + (first * V_GRAPH + head * V_HEAD) + v_at, mask=inside, other=0.0)
        weights = _softmax(q, k, bias, scale, PRECISION)
        if DROPOUT:
            graph = tl.load(first_row_ptr) + first + place
            keep = keep_weights(seed_ptr, site_offset, graph, head, node, node, dropped, HEADS, NODES)
            weights = tl.where(keep, weights * kept_scale, 0.0)
        o = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        tl.store(o_ptr + (first * O_GRAPH + head * O_HEAD) + o_at, o.to(o_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _graph_attention_bwd_kernel(
    do_ptr,  # [G, H, T, d], gradient of o, as q_ptr, k_ptr, v_ptr; d contiguous
    q_ptr,
    k_ptr,
    v_ptr,
    adjacency_ptr,  # [G, T, T] contiguous, as bias_ptr
    bias_ptr,
    seed_ptr,  # int64 scalar, as first_row_ptr
    first_row_ptr,
    dq_ptr,  # [G, H, T, d], as dk_ptr, dv_ptr; with the strides of o
    dk_ptr,
    dv_ptr,
    dbias_ptr,  # [G, T, T] float32
    graphs, scale, threshold, site_offset, dropped, kept_scale,
    DO_GRAPH: tl.constexpr, DO_HEAD: tl.constexpr, DO_NODE: tl.constexpr,
    Q_GRAPH: tl.constexpr, Q_HEAD: tl.constexpr, Q_NODE: tl.constexpr,
    K_GRAPH: tl.constexpr, K_HEAD: tl.constexpr, K_NODE: tl.constexpr,
    V_GRAPH: tl.constexpr, V_HEAD: tl.constexpr, V_NODE: tl.constexpr,
    O_GRAPH: tl.constexpr, O_HEAD: tl.constexpr, O_NODE: tl.constexpr,
    HEADS: tl.constexpr, NODES: tl.constexpr, DEPTH: tl.constexpr, BLOCK_DEPTH: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr, BIASED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    OF_BIAS: tl.constexpr,  # write only dbias, else only the other three: all four take too many registers
):  # fmt: skip
    """Write the rows of dq, dk and dv, or of dbias, of the program's graphs; recomputes weights and dropout mask."""
    first, place, node, exists = _rows(graphs, NODES, BLOCK)
    inside = exists[:, None] & (tl.arange(0, BLOCK_DEPTH) < DEPTH)[None, :]
    bias = _bias(adjacency_ptr, bias_ptr, threshold, first, place, node, exists, NODES, MASKED, BIASED)
    dbias = tl.zeros((BLOCK, BLOCK), tl.float32)
    q_at = _offsets(place, node, Q_GRAPH, Q_NODE, BLOCK_DEPTH)
    k_at = _offsets(place, node, K_GRAPH, K_NODE, BLOCK_DEPTH)
    v_at = _offsets(place, node, V_GRAPH, V_NODE, BLOCK_DEPTH)
    o_at = _offsets(place, node, O_GRAPH, O_NODE, BLOCK_DEPTH)
    do_at = _offsets(place, node, DO_GRAPH, DO_NODE, BLOCK_DEPTH)
    for head in range(HEADS):
        q = tl.load(q_ptr + (first * Q_GRAPH + head * Q_HEAD) + q_at, mask=inside, other=0.0)
        k = tl.load(k_ptr + (first * K_GRAPH + head * K_HEAD) + k_at, mask=inside, other=0.0)
        v = tl.load(v_ptr + (first * V_GRAPH + head * V_HEAD) + v_at, mask=inside, other=0.0)
        do = tl.load(do_ptr + (first * DO_GRAPH + head * DO_HEAD) + do_at, mask=inside, other=0.0)
        weights = _softmax(q, k, bias, scale, PRECISION)
        dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        kept = weights
        if DROPOUT:
            graph = tl.load(first_row_ptr) + first + place
            keep = keep_weights(seed_ptr, site_offset, graph, head, node, node, dropped, HEADS, NODES)
            kept = tl.where(keep, weights * kept_scale, 0.0)
            dweights = tl.where(keep, dweights * kept_scale, 0.0)
        dscores = weights * (dweights - tl.sum(weights * dweights, 1)[:, None])
        if OF_BIAS:
            dbias += dscores
        else:
            dv = tl.dot(tl.trans(kept.to(do.dtype)), do, input_precision=PRECISION)
            cast_dscores = dscores.to(k.dtype)
            dq = tl.dot(cast_dscores, k, input_precision=PRECISION) * scale
            dk = tl.dot(tl.trans(cast_dscores), q, input_precision=PRECISION) * scale
            start = first * O_GRAPH + head * O_HEAD
            tl.store(dq_ptr + start + o_at, dq.to(dq_ptr.dtype.element_ty), mask=inside)
            tl.store(dk_ptr + start + o_at, dk.to(dk_ptr.dtype.element_ty), mask=inside)
            tl.store(dv_ptr + start + o_at, dv.to(dv_ptr.dtype.element_ty), mask=inside)
    if OF_BIAS:
        same_graph = (place[:, None] == place[None, :]) & exists[:, None] & exists[None, :]
        tl.store(dbias_ptr + first * (NODES * NODES) + _matrix_offsets(place, node, NODES), dbias, mask=same_graph)


def graph_attention_forward(inputs: GraphInputs) -> Tensor:
    """Launch the forward kernel; return the result."""
    q = inputs.q
    graphs, _, nodes, _ = q.shape
    o = empty_like_rows(q)
    chosen = choose("graph_attention forward", q, nodes)
    launch(
        _graph_attention_fwd_kernel, triton.cdiv(graphs, chosen.block // nodes), (*graph_tensors(inputs), o), chosen,
        2 * product_flops(q.shape), **graph_arguments(inputs), **strides_of(q=q, k=inputs.k, v=inputs.v, o=o),
    )  # fmt: skip
    return o


def graph_attention_backward(do: Tensor, inputs: GraphInputs) -> list[Tensor]:
    """Launch the backward kernel; return gradients of q, k, v and the bias, if there is one."""
    q, bias = inputs.q, inputs.bias
    graphs, _, nodes, _ = q.shape
    dq, dk, dv = (empty_like_rows(q) for _ in range(3))
    dbias = None if bias is None else torch.empty(bias.shape, dtype=torch.float32, device=bias.device)
    chosen = choose("graph_attention backward", q, nodes)
    tensors = (do, *graph_tensors(inputs), dq, dk, dv, pointer_or(dbias, inputs.dropout.seed))
    named = graph_arguments(inputs) | strides_of(do=do, q=q, k=inputs.k, v=inputs.v, o=dq)
    programs = triton.cdiv(graphs, chosen.block // nodes)
    for of_bias in (False,) if dbias is None else (False, True):
        flops = (2 if of_bias else 5) * product_flops(q.shape)
        launch(_graph_attention_bwd_kernel, programs, tensors, chosen, flops, **named, OF_BIAS=of_bias)
    return [dq, dk, dv] if dbias is None else [dq, dk, dv, dbias]
