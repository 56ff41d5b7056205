"""Attention among the nodes of many small graphs, with adjacency mask, differentiable additive bias and dropout.

For each graph g, head h and pair of nodes i and j,

    score_ij = scale q_i' k_j + bias_ij,   hidden where |adjacency_ij| <= threshold and i != j
    o_i = sum_j dropout(softmax_j(score_ij)) v_j

A node is never hidden from itself, so no row is empty. With P the softmax, M the mask of the dropout and its scale, and
dO the gradient of o:

    dV = (P M)' dO,   dP = M (dO V'),   dS = P (dP - rowsum(P dP)),
    dQ = scale dS K,   dK = scale dS' Q,   dbias = sum over heads of dS

Triton kernels compute it where they can run: one program per graph for up to 64 nodes
(`pgat_kernels.triton.graph_attention`), tiles for up to 512 (`pgat_kernels.triton.edge_attention`: 169 edges of a
timestep). Elsewhere the plain torch functions of this module compute the same function with the same dropout masks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pgat_kernels.dispatch import kernels_run_on
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.dropout import Dropout, keep_mask, keep_scale
from pgat_kernels.ops.graph_inputs import GraphInputs, empty_like_rows, product_flops

MOST_WHOLE = 64
"""Largest number of nodes of a graph that one program holds."""
MOST_NODES = 512
MOST_DEPTH = 64
_LARGEST_STRIDE = 2**31 // MOST_NODES
"""Kernels compute offsets within a tile in 32 bits."""


def takes(nodes: int, depth: int) -> bool:
    """Return whether `graph_attention` supports this number of nodes and this head dimension."""
    return 1 <= nodes <= MOST_NODES and 1 <= depth <= MOST_DEPTH


def graph_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adjacency: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    threshold: float = 0.0,
    scale: float | None = None,
    dropout: Dropout | None = None,
) -> Tensor:
    """Compute attention within each of G graphs.

    Args:
        q, k, v: [G, H, T, d] of one floating dtype, T at most 512 and d at most 64; any strides. They may be one
            tensor.
        adjacency: [G, T, T]; hides node j from node i where its magnitude is at most `threshold`. It has no gradient.
        bias: [G, T, T], added to the scores of all heads; at least float32.
        threshold: see `adjacency`.
        scale: of the scores, 1 / sqrt(d) by default.
        dropout: of the attention weights, none by default. The rows of its mask are the queries of all heads of all
            graphs, its columns the keys; its `first_row` counts graphs.

    Returns:
        [G, H, T, d] in the dtype of the inputs, as a view of a contiguous [G, T, H, d]. Products accumulate in at least
        float32, and the softmax is computed in at least float32. Bitwise repeatable.

    Raises:
        ValueError: if shapes, dtypes or devices do not match or are not supported.
    """
    if dropout is None:
        zero = torch.zeros((), dtype=torch.int64, device=q.device)
        dropout = Dropout(0.0, zero, 0, zero)
    _check(q, k, v, adjacency, bias, dropout)
    q, k, v = map(_readable, (q, k, v))
    if adjacency is not None:
        adjacency = adjacency.detach().contiguous()
    if bias is not None:
        bias = bias.contiguous()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rate, seed, site, first = dropout
    return _graph_attention(q, k, v, adjacency, bias, seed, first, site, rate, threshold, scale)[0]


def _readable(x: Tensor) -> Tensor:
    """Return `x` with strides that kernels support: contiguous columns, offsets in a tile within 32 bits."""
    return x if x.stride(-1) == 1 and max(x.stride()) < _LARGEST_STRIDE else x.contiguous()


def _check(q: Tensor, k: Tensor, v: Tensor, adjacency: Tensor | None, bias: Tensor | None, dropout: Dropout) -> None:
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v must be [G, H, T, d], all three alike, not {shapes}")
    graphs, _, nodes, depth = q.shape
    if not takes(nodes, depth):
        raise ValueError(
            f"{nodes} nodes with head dimension {depth}: graph_attention takes 1 to {MOST_NODES} nodes and head "
            f"dimensions from 1 to {MOST_DEPTH}; pgat_kernels.ops.attention takes any"
        )
    if not q.is_floating_point() or len({q.dtype, k.dtype, v.dtype}) > 1:
        raise ValueError(f"q, k and v must be of one floating dtype, not {q.dtype}, {k.dtype} and {v.dtype}")
    for name, x in (("adjacency", adjacency), ("bias", bias)):
        if x is not None and list(x.shape) != [graphs, nodes, nodes]:
            raise ValueError(f"{name} must be {[graphs, nodes, nodes]} for q {list(q.shape)}, not {list(x.shape)}")
    if bias is not None and bias.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"bias must be at least float32, not {bias.dtype}: its gradient is a sum over heads")
    devices = {str(x.device) for x in (q, k, v, adjacency, bias, dropout.seed, dropout.first_row) if x is not None}
    if len(devices) > 1:
        raise ValueError(f"all tensors must be on one device, not on {' and '.join(sorted(devices))}")
    if not 0 <= dropout.rate < 1:
        raise ValueError(f"the dropout rate is {dropout.rate}: it must be at least 0 and below 1")


# --- in plain torch ---------------------------------------------------------------------------------------------------


def plain_weights(inputs: GraphInputs) -> tuple[Tensor, Tensor]:
    """Return attention weights before dropout [G, H, T, T] and log-sum-exp of the scores, in at least float32."""
    q, k, _, adjacency, bias, *_ = inputs
    acc_dtype = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-1, -2)).to(acc_dtype) * inputs.scale
    if bias is not None:
        scores = scores + bias[:, None]
    if adjacency is not None:
        diagonal = torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)
        scores = scores.masked_fill(((adjacency.abs() <= inputs.threshold) & ~diagonal)[:, None], float("-inf"))
    return torch.softmax(scores, dim=-1), torch.logsumexp(scores, dim=-1)


def plain_mask(weights: Tensor, dropout: Dropout) -> Tensor | None:
    """Return the factors by which dropout multiplies the weights; None without dropout."""
    if dropout.rate == 0:
        return None
    graphs, heads, nodes, _ = weights.shape
    first = dropout.first_row * (heads * nodes)
    keep = keep_mask(dropout.seed, dropout.site, (graphs * heads * nodes, nodes), dropout.rate, first)
    return keep.view(weights.shape).to(weights.dtype) * keep_scale(dropout.rate)


def plain_forward(inputs: GraphInputs) -> tuple[Tensor, Tensor]:
    """Compute the results of the forward kernels in plain torch."""
    q, v = inputs.q, inputs.v
    weights, log_sum_exp = plain_weights(inputs)
    mask = plain_mask(weights, inputs.dropout)
    o = empty_like_rows(q).copy_((weights if mask is None else weights * mask).to(v.dtype) @ v)
    return o, log_sum_exp if q.shape[2] > MOST_WHOLE else log_sum_exp.new_empty(0)


def plain_backward(do: Tensor, inputs: GraphInputs) -> list[Tensor]:
    """Compute gradients of q, k, v and the bias, if there is one, in plain torch, as the backward kernels do."""
    q, k, v, _, bias, *_ = inputs
    weights, _ = plain_weights(inputs)
    mask = plain_mask(weights, inputs.dropout)
    d_weights = (do @ v.transpose(-1, -2)).to(weights.dtype)
    kept = weights
    if mask is not None:
        kept, d_weights = weights * mask, d_weights * mask
    d_scores = weights * (d_weights - (weights * d_weights).sum(dim=-1, keepdim=True))
    cast_d_scores = (d_scores * inputs.scale).to(k.dtype)
    grads = cast_d_scores @ k, cast_d_scores.transpose(-1, -2) @ q, kept.to(do.dtype).transpose(-1, -2) @ do
    qkv_grads = [empty_like_rows(q).copy_(grad) for grad in grads]
    return qkv_grads if bias is None else [*qkv_grads, d_scores.sum(dim=1).to(bias.dtype)]


# --- the operator -----------------------------------------------------------------------------------------------------


@torch.library.custom_op("pgat::graph_attention", mutates_args=())
def _graph_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adjacency: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    first_row: Tensor,
    site: int,
    rate: float,
    threshold: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the result, and the log-sum-exp of the scores [G, H, T] above 64 nodes, else an empty tensor."""
    inputs = GraphInputs(q, k, v, adjacency, bias, Dropout(rate, seed, site, first_row), threshold, scale)
    if not kernels_run_on(q.device, q.dtype):
        with no_autocast(q.device):
            return plain_forward(inputs)
    if q.shape[2] > MOST_WHOLE:
        from pgat_kernels.triton.edge_attention import edge_attention_forward

        return edge_attention_forward(inputs)
    from pgat_kernels.triton.graph_attention import graph_attention_forward

    return graph_attention_forward(inputs), seed.new_empty(0, dtype=torch.float32)


@torch.library.custom_op("pgat::graph_attention_backward", mutates_args=())
def _graph_attention_backward(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adjacency: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    first_row: Tensor,
    o: Tensor | None,
    log_sum_exp: Tensor | None,
    site: int,
    rate: float,
    threshold: float,
    scale: float,
) -> list[Tensor]:
    """Return gradients of q, k, v and the bias, if there is one. Above 64 nodes it takes the results of the forward."""
    inputs = GraphInputs(q, k, v, adjacency, bias, Dropout(rate, seed, site, first_row), threshold, scale)
    if not kernels_run_on(q.device, q.dtype):
        with no_autocast(q.device):
            return plain_backward(do, inputs)
    if o is not None and log_sum_exp is not None:
        from pgat_kernels.triton.edge_attention import edge_attention_backward

        return edge_attention_backward(do, inputs, o, log_sum_exp)
    from pgat_kernels.triton.graph_attention import graph_attention_backward

    return graph_attention_backward(do, inputs)


@_graph_attention.register_fake
def _(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    graphs, heads, nodes, _ = q.shape
    acc_dtype = torch.promote_types(q.dtype, torch.float32)
    shape = (graphs, heads, nodes) if nodes > MOST_WHOLE else (0,)
    return empty_like_rows(q), torch.empty(shape, dtype=acc_dtype, device=q.device)


@_graph_attention_backward.register_fake
def _(do: Tensor, q: Tensor, k: Tensor, v: Tensor, adjacency: Tensor | None, bias: Tensor | None, *args: Any) -> Any:
    qkv_grads = [empty_like_rows(q) for _ in range(3)]
    return qkv_grads if bias is None else [*qkv_grads, torch.empty_like(bias, memory_format=torch.contiguous_format)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, site, rate, threshold, scale = inputs
    ctx.plain = site, rate, threshold, scale
    saved = output if inputs[0].shape[2] > MOST_WHOLE else (None, None)
    ctx.save_for_backward(*tensors, *saved)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, do: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if do is None:
        return (None,) * 11
    do = _readable(do)
    dq, dk, dv, *dbias = _graph_attention_backward(do, *ctx.saved_tensors, *ctx.plain)
    return dq, dk, dv, None, dbias[0] if dbias else None, *(None,) * 6


_graph_attention.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.pgat.graph_attention)
def _(q: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * product_flops(q)


@register_flop_formula(torch.ops.pgat.graph_attention_backward)
def _(do: Any, q: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 5 * product_flops(q)  # recomputed scores; gradients of weights, v, q, k
