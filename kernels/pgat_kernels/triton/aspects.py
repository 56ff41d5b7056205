"""Kernels for strengths between all pairs of bodies; the formulas are in `pgat_kernels.ops.aspects`.

Limits: at most 128 pairs (16 bodies); any width.

Grid of the forward kernel: one program per timestep, which loops over the columns and writes the whole matrix, both
halves and the diagonal. Grid of the backward kernel: a program owns COLUMNS columns of STEPS consecutive timesteps. It
recomputes the gelu, and writes the gradient of x there and its contributions to those of the constants and the weight,
which torch adds up in the order of the programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgat_kernels.triton.launch import choose, launch, rounded
from pgat_kernels.triton.tiles import gelu, gelu_and_slope, load_row, load_tile, sigmoid

_STEPS = 32
"""Number of timesteps of a program of the backward kernel."""


@triton.jit
def _aspects_fwd_kernel(
    x_ptr,  # [M, WIDTH]
    constants_ptr,  # [PAIRS, WIDTH]
    weight_ptr,  # [WIDTH]
    bias_ptr,  # [1]
    nodes_ptr,  # [2, PAIRS] int64: the two nodes of every pair
    y_ptr,  # [M, NODES, NODES]
    PAIRS: tl.constexpr,
    NODES: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_NODES: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the whole matrix of a timestep: both halves and the diagonal."""
    timestep = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    exists = pair < PAIRS
    logits = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        x = load_row(x_ptr + timestep * WIDTH, columns, WIDTH)
        z = x[None, :] + load_tile(constants_ptr, exists, start, WIDTH, COLUMNS, BLOCK).to(tl.float32)
        logits += tl.sum(gelu(z) * load_row(weight_ptr, columns, WIDTH)[None, :], 1)
    strength = sigmoid(logits + tl.load(bias_ptr).to(tl.float32))
    i = tl.load(nodes_ptr + pair, mask=exists, other=0).to(tl.int32)
    j = tl.load(nodes_ptr + PAIRS + pair, mask=exists, other=0).to(tl.int32)
    y_ptr += timestep * (NODES * NODES)
    tl.store(y_ptr + i * NODES + j, strength, mask=exists)
    tl.store(y_ptr + j * NODES + i, strength, mask=exists)
    node = tl.arange(0, BLOCK_NODES)
    tl.store(y_ptr + node * (NODES + 1), tl.full((BLOCK_NODES,), 1.0, tl.float32), mask=node < NODES)


@triton.jit
def _aspects_bwd_kernel(
    g_ptr,  # [M, PAIRS] float32, gradient of the logits
    x_ptr,  # [M, WIDTH]
    constants_ptr,  # [PAIRS, WIDTH]
    weight_ptr,  # [WIDTH]
    g_x_ptr,  # [M, WIDTH]
    g_constants_ptr,  # [slabs, PAIRS, WIDTH] float32
    g_weight_ptr,  # [slabs, WIDTH] float32
    timesteps,
    PAIRS: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write COLUMNS columns of the gradient of x at STEPS timesteps, and the sums over these timesteps."""
    parts: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    slab = (tl.program_id(0) // parts).to(tl.int64)
    start = (tl.program_id(0) % parts) * COLUMNS
    columns = start + tl.arange(0, COLUMNS)
    seen = columns < WIDTH
    pair = tl.arange(0, BLOCK)
    exists = pair < PAIRS
    constants = load_tile(constants_ptr, exists, start, WIDTH, COLUMNS, BLOCK).to(tl.float32)
    weight = load_row(weight_ptr, columns, WIDTH)
    g_constants = tl.zeros((BLOCK, COLUMNS), tl.float32)
    g_weight = tl.zeros((COLUMNS,), tl.float32)
    first = slab * STEPS
    for timestep in range(first, tl.minimum(first + STEPS, timesteps)):
        g = tl.load(g_ptr + timestep * PAIRS + pair, mask=exists, other=0.0)
        x = load_row(x_ptr + timestep * WIDTH, columns, WIDTH)
        value, slope = gelu_and_slope(x[None, :] + constants)
        g_weight += tl.sum(g[:, None] * value, 0)
        g_z = g[:, None] * weight[None, :] * slope
        tl.store(g_x_ptr + timestep * WIDTH + columns, tl.sum(g_z, 0).to(g_x_ptr.dtype.element_ty), mask=seen)
        g_constants += g_z
    at = pair[:, None] * WIDTH + columns[None, :]
    tl.store(g_constants_ptr + slab * (PAIRS * WIDTH) + at, g_constants, mask=exists[:, None] & seen[None, :])
    tl.store(g_weight_ptr + slab * WIDTH + columns, g_weight, mask=seen)


def aspects_forward(inputs: list[Tensor], pairs: Tensor, nodes: int) -> Tensor:
    """Launch the forward kernel: [M, N, N] float32 from x [M, D], constants [P, D], weight [D], bias [1] and `pairs`.

    `pairs` holds the nodes of the pairs, [2, P]. All tensors are contiguous.
    """
    x, constants, *_ = inputs
    timesteps, width = x.shape
    y = torch.empty((timesteps, nodes, nodes), dtype=torch.float32, device=x.device)
    chosen = choose("aspects forward", constants, len(constants))
    launch(
        _aspects_fwd_kernel, timesteps, (*inputs, pairs, y), chosen, 2 * timesteps * constants.numel(),
        PAIRS=len(constants), NODES=nodes, WIDTH=width, BLOCK_NODES=rounded(nodes), COLUMNS=chosen.columns,
    )  # fmt: skip
    return y


def aspects_backward(g: Tensor, x: Tensor, constants: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel; return gradients of x, constants and weight from that of the logits [M, P] (float32).

    The last two are float32.
    """
    timesteps, width = x.shape
    slabs = -(-timesteps // _STEPS)
    g_x = torch.empty_like(x)
    g_constants = torch.empty((slabs, *constants.shape), dtype=torch.float32, device=x.device)
    g_weight = torch.empty((slabs, width), dtype=torch.float32, device=x.device)
    chosen = choose("aspects backward", constants, len(constants))
    tensors = (g, x, constants, weight, g_x, g_constants, g_weight)
    launch(
        _aspects_bwd_kernel, slabs * -(-width // chosen.columns), tensors, chosen, 2 * timesteps * constants.numel(),
        timesteps=timesteps, PAIRS=len(constants), WIDTH=width, STEPS=_STEPS, COLUMNS=chosen.columns,
    )  # fmt: skip
    return g_x, g_constants.sum(dim=0), g_weight.sum(dim=0)
