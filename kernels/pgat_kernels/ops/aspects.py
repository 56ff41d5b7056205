"""Strengths between all pairs of bodies, with one matrix product per timestep (rewrite 3).

The input of the first layer for a pair is the vectors of both bodies side by side, u_i = body_i + m, with m [D] the
market vector of the timestep. With the weight split in halves, W1 = [Wa, Wb]:

    W1 [u_i ; u_j] + b1 = Wa (body_i + m) + Wb (body_j + m) + b1
                        = (Wa + Wb) m  +  (Wa body_i + Wb body_j + b1)
                        = x            +  c_ij

x takes one product of width D per timestep instead of N (N - 1) / 2 of width 2 D, and the vectors c_ij do not depend on
the timestep. `pair_terms` computes both; `aspects` computes

    A_ij = A_ji = sigmoid(w2 . gelu(x + c_ij) + b2) for i < j,   A_ii = 1.

This takes a gelu for every timestep, pair and channel. It is computed for a few timesteps at a time, which stay in the
cache of a processor, and recomputed in the backward pass: no tensor of the size [timesteps, pairs, D] is allocated.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from pgat_kernels.dispatch import use_kernel
from pgat_kernels.instrumentation import chunk_device_type
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.chunk_sizes import starts

aten = torch.ops.aten

MOST_PAIRS = 128
"""Largest number of pairs that a kernel supports."""

_CACHE = 2**21
"""Bytes of the [timesteps, pairs, D] values of a chunk on a CPU: about the size of the private cache of a core."""
_OCCUPANCY = 2**26
"""Bytes of these values on a GPU."""


def pair_terms(market: Tensor, bodies: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the two terms of the first layer, see the module's derivation.

    Args:
        market: m, [M, D].
        bodies: vectors of the N bodies, [N, D].
        weight: W1, [D, 2 D].
        bias: b1, [D].

    Returns:
        x [M, D], and c_ij for the pairs i < j in the order of `torch.triu_indices`, [N (N - 1) / 2, D].
    """
    of_first, of_second = weight.chunk(2, dim=1)
    first, second = F.linear(bodies, of_first, bias), F.linear(bodies, of_second)
    i, j = torch.triu_indices(len(bodies), len(bodies), offset=1, device=bodies.device)
    # Compute all N * N sums and read no entry twice: gradients of repeated entries would be added up in any order.
    sums = (first[:, None] + second).flatten(0, 1)
    return F.linear(market, of_first + of_second), sums[i * len(bodies) + j]


def node_count(pairs: int) -> int:
    """Return N with N (N - 1) / 2 = `pairs`.

    Raises:
        ValueError: if there is no such N.
    """
    nodes = (1 + math.isqrt(1 + 8 * pairs)) // 2
    if nodes * (nodes - 1) // 2 != pairs:
        raise ValueError(f"{pairs} is not the number of pairs of any number of nodes")
    return nodes


@torch.library.custom_op("pgat::aspects", mutates_args=())
def aspects(x: Tensor, constants: Tensor, weight: Tensor, bias: Tensor, kernels: bool = False) -> Tensor:
    """Compute symmetric strengths between N bodies: [M, N, N] within [0, 1], diagonal 1, in at least float32.

    Args:
        x: [M, D], any float dtype; see `pair_terms`.
        constants: c_ij, [N (N - 1) / 2, D], any float dtype.
        weight: w2, [D].
        bias: b2, [1].
        kernels: whether a Triton kernel may compute it, in one launch.

    Only the arguments and the result are kept for the backward pass.

    Raises:
        ValueError: if the number of constants is not N (N - 1) / 2 for any N.
    """
    nodes, pairs = node_count(len(constants)), len(constants)
    dtype = _wide(x, weight)
    constants, weight = constants.to(dtype), weight.to(dtype)
    if _by_kernel(kernels, x, dtype, pairs):
        from pgat_kernels.triton.aspects import aspects_forward

        tensors = [tensor.contiguous() for tensor in (x, constants, weight, bias)]
        return aspects_forward(tensors, torch.triu_indices(nodes, nodes, offset=1, device=x.device), nodes)
    strengths = x.new_empty(len(x), pairs + 1, dtype=dtype)
    strengths[:, pairs] = 1
    with no_autocast(x.device):
        rows = _chunk_rows(x.device, constants)
        buffer = x.new_empty(min(rows, len(x)), *constants.shape, dtype=dtype)
        for first in starts(len(x), rows):
            chunk = x[first : first + rows].to(dtype)
            z = torch.add(chunk[:, None], constants, out=buffer[: len(chunk)])
            logits = aten.gelu_(z).view(-1, z.shape[-1]) @ weight
            strengths[first : first + rows, :pairs] = torch.sigmoid(logits + bias).view(-1, pairs)
    return strengths.index_select(1, _pair_of_entry(nodes, x.device)).view(-1, nodes, nodes)


@torch.library.custom_op("pgat::aspects_backward", mutates_args=())
def aspects_backward(
    gradient: Tensor, x: Tensor, constants: Tensor, weight: Tensor, result: Tensor, kernels: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute gradients of x, constants, weight and bias of `aspects` from that of its result, [M, N, N]."""
    nodes = node_count(len(constants))
    dtype = result.dtype
    cast_constants, cast_weight = constants.to(dtype), weight.to(dtype)
    i, j = torch.triu_indices(nodes, nodes, offset=1, device=x.device)
    entries = gradient.to(dtype).reshape(-1, nodes * nodes)
    strengths = result.reshape(-1, nodes * nodes).index_select(1, i * nodes + j)
    g_strengths = entries.index_select(1, i * nodes + j) + entries.index_select(1, j * nodes + i)
    g_logits = g_strengths * strengths * (1 - strengths)  # [M, pairs]
    g_bias = g_logits.sum().to(weight.dtype).view(1)
    if _by_kernel(kernels, x, dtype, len(constants)):
        from pgat_kernels.triton.aspects import aspects_backward as by_kernel

        of_x, of_constants, of_weight = by_kernel(
            g_logits, x.contiguous(), cast_constants.contiguous(), cast_weight.contiguous()
        )
        return of_x, of_constants.to(constants.dtype), of_weight.to(weight.dtype), g_bias

    g_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    g_constants, g_weight = torch.zeros(constants.shape, dtype=dtype, device=x.device), torch.zeros_like(cast_weight)
    with no_autocast(x.device):
        rows = _chunk_rows(x.device, constants)
        buffers = x.new_empty(2, min(rows, len(x)), *constants.shape, dtype=dtype)
        for first in starts(len(x), rows):
            chunk = x[first : first + rows].to(dtype)
            g = g_logits[first : first + rows]
            z = torch.add(chunk[:, None], cast_constants, out=buffers[0, : len(chunk)])
            values = aten.gelu.out(z, out=buffers[1, : len(chunk)])
            of_timesteps = torch.bmm(g[:, None], values)  # [rows, 1, D]: less rounding than one long sum
            g_weight += of_timesteps.sum(dim=(0, 1))
            g_values = torch.mul(g[:, :, None], cast_weight, out=values)
            g_z = aten.gelu_backward.grad_input(g_values, z, grad_input=g_values)
            g_x[first : first + rows] = g_z.sum(dim=1)
            g_constants += g_z.sum(dim=0)
    return g_x, g_constants.to(constants.dtype), g_weight.to(weight.dtype), g_bias


def _by_kernel(kernels: bool, x: Tensor, dtype: torch.dtype, pairs: int) -> bool:
    """Return whether a kernel computes it: if requested and available, in float32, up to `MOST_PAIRS` pairs."""
    return kernels and use_kernel("aspects", x.device, [x.dtype], dtype == torch.float32 and pairs <= MOST_PAIRS)


def _wide(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of the computation: at least float32."""
    return torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)


def _chunk_rows(device: torch.device, constants: Tensor) -> int:
    """Return the number of timesteps of a chunk."""
    bytes_of_a_row = constants.numel() * max(constants.element_size(), 4)
    return max(1, (_CACHE if chunk_device_type(device) == "cpu" else _OCCUPANCY) // max(1, bytes_of_a_row))


def _pair_of_entry(nodes: int, device: torch.device) -> Tensor:
    """Return the pair index of every entry of the matrix, int64 [N * N]; diagonal entries hold the number of pairs."""
    pairs = nodes * (nodes - 1) // 2
    i, j = torch.triu_indices(nodes, nodes, offset=1, device=device)
    table = torch.full((nodes, nodes), pairs, dtype=torch.int64, device=device)
    table[i, j] = table[j, i] = torch.arange(pairs, device=device)
    return table.view(-1)


@aspects.register_fake
def _(x: Tensor, constants: Tensor, weight: Tensor, bias: Tensor, kernels: bool = False) -> Tensor:
    nodes = node_count(constants.shape[0])
    return x.new_empty(x.shape[0], nodes, nodes, dtype=_wide(x, weight))


@aspects_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, constants: Tensor, weight: Tensor, result: Tensor, kernels: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias = weight.new_empty(1)
    return x.new_empty(x.shape), constants.new_empty(constants.shape), weight.new_empty(weight.shape), bias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, constants, weight, bias, ctx.kernels = inputs
    ctx.save_for_backward(x, constants, weight, output)
    ctx.bias_dtype = bias.dtype


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    g_x, g_constants, g_weight, g_bias = aspects_backward(gradient, *ctx.saved_tensors, ctx.kernels)
    return g_x, g_constants, g_weight, g_bias.to(ctx.bias_dtype), None


aspects.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.pgat.aspects)
def _(x: Any, constants: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * x[0] * constants[0] * constants[1]


@register_flop_formula(torch.ops.pgat.aspects_backward)
def _(gradient: Any, x: Any, constants: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * x[0] * constants[0] * constants[1]  # weight gradient; rest elementwise
