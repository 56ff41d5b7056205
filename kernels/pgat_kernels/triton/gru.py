"""Kernels for the time loops of a bank of GRUs, one launch each; the formulas are in `pgat_kernels.ops.gru`.

Limits: float32, at most 128 states (`pgat_kernels.ops.gru.MOST_STATES`), contiguous tensors.

Grid: one dimension; program (group, BLOCK rows of the batch) owns these rows at every step, since rows are independent.
Recurrent weights stay in registers if they fit (up to 64 states), otherwise every step reads them again. Terms that do
not depend on the state are computed outside of the kernels, for all steps at once: one product with the inputs before
the loop, the factors of the gradients before the backward loop, and the gradients of the weights after it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgat_kernels.triton.launch import choose, launch, rounded, tiles_of
from pgat_kernels.triton.tiles import sigmoid, tanh

_RESIDENT = tl.constexpr(64)


@triton.jit
def _place(groups, batch, BLOCK: tl.constexpr):
    """Return group (int64) and rows of the program."""
    blocks = tl.cdiv(batch, BLOCK)
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), (program % blocks) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _weights(weight_ptr, group, SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, TURNED: tl.constexpr):
    """Load the weights of r, z and n, each [out, in], or transposed [in, out] if TURNED; zeros outside."""
    i = tl.arange(0, BLOCK_SIZE)
    inside = (i < SIZE)[:, None] & (i < SIZE)[None, :]
    at = i[None, :] * SIZE + i[:, None] if TURNED else i[:, None] * SIZE + i[None, :]
    start = group * (3 * SIZE * SIZE)
    return (
        tl.load(weight_ptr + start + at, mask=inside, other=0.0),
        tl.load(weight_ptr + (start + SIZE * SIZE) + at, mask=inside, other=0.0),
        tl.load(weight_ptr + (start + 2 * SIZE * SIZE) + at, mask=inside, other=0.0),
    )


@triton.jit
def _store_three(ptr, at, inside, r, z, n, DISTANCE: tl.constexpr):
    """Store the parts of r, z and n, which are DISTANCE elements apart."""
    tl.store(ptr + at, r, mask=inside)
    tl.store(ptr + at + DISTANCE, z, mask=inside)
    tl.store(ptr + at + 2 * DISTANCE, n, mask=inside)


@triton.jit
def _gru_scan_fwd_kernel(
    gates_ptr,  # [S, G, B, 3 SIZE]
    candidates_ptr,  # [S, G, B, SIZE], as states_ptr
    weight_ptr,  # [G, 3 SIZE, SIZE]
    states_ptr,
    steps,
    groups,
    batch,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the states of BLOCK rows of a group at every step, and, if KEEP, the gates over the inputs."""
    group, rows = _place(groups, batch, BLOCK)
    i = tl.arange(0, BLOCK_SIZE)
    inside = (rows < batch)[:, None] & (i < SIZE)[None, :]
    row = group * batch + rows
    at = row[:, None] * SIZE + i[None, :]
    at_gates = row[:, None] * (3 * SIZE) + i[None, :]
    a_step = groups * batch * SIZE
    w_r, w_z, w_n = _weights(weight_ptr, group, SIZE, BLOCK_SIZE, True)
    h = tl.zeros((BLOCK, BLOCK_SIZE), tl.float32)
    for _ in range(steps):
        if BLOCK_SIZE > _RESIDENT:
            w_r, w_z, w_n = _weights(weight_ptr, group, SIZE, BLOCK_SIZE, True)
        r = tl.load(gates_ptr + at_gates, mask=inside, other=0.0)
        z = tl.load(gates_ptr + at_gates + SIZE, mask=inside, other=0.0)
        u_n = tl.load(gates_ptr + at_gates + 2 * SIZE, mask=inside, other=0.0)
        a_n = tl.load(candidates_ptr + at, mask=inside, other=0.0)
        r = sigmoid(r + tl.dot(h, w_r, input_precision="ieee"))
        z = sigmoid(z + tl.dot(h, w_z, input_precision="ieee"))
        u_n += tl.dot(h, w_n, input_precision="ieee")
        n = tanh(a_n + r * u_n)
        h = tl.where(inside, n + z * (h - n), 0.0)
        tl.store(states_ptr + at, h, mask=inside)
        if KEEP:  # overwrites the inputs
            _store_three(gates_ptr, at_gates, inside, r, z, u_n, SIZE)
            tl.store(candidates_ptr + at, n, mask=inside)
        gates_ptr += 3 * a_step
        candidates_ptr += a_step
        states_ptr += a_step


@triton.jit
def _gru_scan_bwd_kernel(
    gradient_ptr,  # [S, G, B, SIZE], as update_ptr, errors_ptr
    update_ptr,
    factors_ptr,  # [S, G, B, 3 SIZE], as scaled_ptr
    weight_ptr,  # [G, 3 SIZE, SIZE]
    errors_ptr,
    scaled_ptr,
    steps,
    groups,
    batch,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write e_t and e_t k_t of BLOCK rows of a group at every step, from the last to the first."""
    group, rows = _place(groups, batch, BLOCK)
    i = tl.arange(0, BLOCK_SIZE)
    inside = (rows < batch)[:, None] & (i < SIZE)[None, :]
    a_step = groups * batch * SIZE
    row = group * batch + rows
    last = (steps - 1) * tl.cast(a_step, tl.int64)
    at = last + row[:, None] * SIZE + i[None, :]
    at_gates = 3 * last + row[:, None] * (3 * SIZE) + i[None, :]
    w_r, w_z, w_n = _weights(weight_ptr, group, SIZE, BLOCK_SIZE, False)
    later = tl.zeros((BLOCK, BLOCK_SIZE), tl.float32)
    for _ in range(steps):
        if BLOCK_SIZE > _RESIDENT:
            w_r, w_z, w_n = _weights(weight_ptr, group, SIZE, BLOCK_SIZE, False)
        e = later + tl.load(gradient_ptr + at, mask=inside, other=0.0)
        tl.store(errors_ptr + at, e, mask=inside)
        # Each factor is used at once: loaded together they would take a quarter more registers.
        of_r = e * tl.load(factors_ptr + at_gates, mask=inside, other=0.0)
        of_z = e * tl.load(factors_ptr + at_gates + SIZE, mask=inside, other=0.0)
        of_n = e * tl.load(factors_ptr + at_gates + 2 * SIZE, mask=inside, other=0.0)
        _store_three(scaled_ptr, at_gates, inside, of_r, of_z, of_n, SIZE)
        later = e * tl.load(update_ptr + at, mask=inside, other=0.0)
        later += tl.dot(of_r, w_r, input_precision="ieee")
        later += tl.dot(of_z, w_z, input_precision="ieee")
        later += tl.dot(of_n, w_n, input_precision="ieee")
        at -= a_step
        at_gates -= 3 * a_step


def gru_scan(gates: Tensor, candidates: Tensor, weight: Tensor, *, keep: bool = False) -> Tensor:
    """Compute the states at every step: [S, G, B, 3 H], [S, G, B, H], [G, 3 H, H] -> [S, G, B, H].

    Args:
        gates: the terms of r, z and u_n that do not depend on the state, side by side.
        candidates: the same term of n.
        weight: W_hh.
        keep: whether to overwrite `gates` by r, z and u_n and `candidates` by n.
    """
    states = torch.empty_like(candidates)
    _launch(_gru_scan_fwd_kernel, "gru forward", (gates, candidates, weight, states), candidates, KEEP=keep)
    return states


def gru_scan_backward(gradient: Tensor, update: Tensor, factors: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute e_t and e_t k_t of all steps: [S, G, B, H] and [S, G, B, 3 H].

    Args:
        gradient: of the states, [S, G, B, H].
        update: z of all steps, [S, G, B, H].
        factors: k of all steps, [S, G, B, 3 H].
        weight: W_hh, [G, 3 H, H].
    """
    errors, scaled = torch.empty_like(update), torch.empty_like(factors)
    _launch(_gru_scan_bwd_kernel, "gru backward", (gradient, update, factors, weight, errors, scaled), update)
    return errors, scaled


def _launch(kernel: triton.JITFunction, name: str, tensors: tuple[Tensor, ...], states: Tensor, **named: bool) -> None:
    steps, groups, batch, size = states.shape
    chosen = choose(name, states, size)
    launch(
        kernel, groups * tiles_of(batch, chosen), tensors, chosen, 6 * steps * groups * batch * size * size,
        steps=steps, groups=groups, batch=batch, SIZE=size, BLOCK_SIZE=rounded(size), **named,
    )  # fmt: skip
