"""G GRUs of one size, computed together in one scan along time (rewrite 6).

With the input x_t, the state h_{t-1} and the three blocks of rows of W_ih, W_hh, b_ih and b_hh (the order and the
formulas of `torch.nn.GRU`, where the reset gate r is applied inside the candidate n):

    a_t = W_ih x_t + b_ih,   u_t = W_hh h_{t-1} + b_hh
    r = sigmoid(a_r + u_r),   z = sigmoid(a_z + u_z),   n = tanh(a_n + r u_n)
    h_t = (1 - z) n + z h_{t-1},   h_0 = 0.

Forward: one product outside of the loop computes all a_t. A step of the loop is one batched product and four
elementwise operations, in place in the buffer of the products.

Backward: given all states, one product recomputes the u_t, and hence the gates, of all steps, so they need not be kept.
The gradients of the gates are linear in the gradient e_t of h_t: the gradients of u_t are e_t k_t with

    k_n' = (1 - z) (1 - n^2),   k_n = k_n' r,   k_r = k_n' u_n r (1 - r),   k_z = (h_{t-1} - n) z (1 - z),

and those of a_t are the same, except e_t k_n' for n. All k_t are computed outside of the loop, which only computes

    e_{t-1} = g_{t-1} + z e_t + W_hh' (e_t k_t),   g_t the gradient of the result,

three operations per step. The gradients of the weights are sums over all steps, one product each after the loop.

Saved for the backward pass: the arguments and the result; without `recompute` also r, z, u_n and n of all steps, four
times the size of the result, which saves two of the six products of the backward pass. All numbers are float32 or
float64, except the factors of the products with W_ih, which may have 16 bits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pgat_kernels.dispatch import use_kernel
from pgat_kernels.matmul_precision import no_autocast, products_without_onednn
from pgat_kernels.ops.chunk_sizes import starts

aten = torch.ops.aten

MOST_STATES = 128
"""Largest number of states that a kernel supports."""


def gru_bank(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    dtype: torch.dtype,
    kernels: bool = False,
    recompute: bool = True,
) -> Tensor:
    """Compute the states of G GRUs at every step, starting from zero states.

    Args:
        x: inputs, [B, S, G, I], any float dtype and strides.
        w_ih: input weights, [G, 3 H, I]: rows of the reset gate, the update gate and the candidate.
        w_hh: recurrent weights, [G, 3 H, H].
        b_ih, b_hh: biases, [G, 3 H].
        dtype: of the factors of the products with `w_ih`; the recurrence is always at least float32.
        kernels: whether Triton kernels may compute the loops along time, with one launch each.
        recompute: whether the backward pass recomputes the gates of all steps; otherwise they are kept.

    Returns:
        [B, S, G, H], in the wider of float32 and the dtype of `x`.

    Raises:
        ValueError: if shapes do not match.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014, in the variant of
    `torch.nn.GRU`.
    """
    return gru_bank_operator(x, w_ih, w_hh, b_ih, b_hh, dtype, kernels, recompute)[0]


@torch.library.custom_op("pgat::gru_bank", mutates_args=())
def gru_bank_operator(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    dtype: torch.dtype,
    kernels: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `gru_bank`; also return what is kept: r, z, u_n side by side [S, G, B, 3 H], n [S, G, B, H], or empty."""
    _check(x, w_ih, w_hh, b_ih, b_hh)
    steps, size, acc_dtype = x.shape[1], w_hh.shape[2], _wide(x)
    with no_autocast(x.device):
        gates, candidates = _input_part(_by_group(x.transpose(0, 1), dtype), steps, w_ih, b_ih, b_hh, acc_dtype)
        if _by_kernel(kernels, gates, size):
            from pgat_kernels.triton.gru import gru_scan

            states = gru_scan(gates, candidates, w_hh.to(acc_dtype).contiguous(), keep=not recompute)
        else:
            states = _states_along_time(gates, candidates, w_hh.to(acc_dtype))
    kept = (gates.new_empty(0), gates.new_empty(0)) if recompute else (gates, candidates)
    return states.permute(2, 0, 1, 3).contiguous(), *kept


def _states_along_time(gates: Tensor, candidates: Tensor, weight: Tensor) -> Tensor:
    """Compute the states: [S, G, B, 3 H], [S, G, B, H], [G, 3 H, H] -> [S, G, B, H].

    `gates` is overwritten by r, z and u_n, `candidates` by n.
    """
    steps, groups, batch, size = candidates.shape
    states = gates.new_empty(steps, groups, batch, size)
    previous = gates.new_zeros(groups, batch, size)
    weight = weight.transpose(1, 2).contiguous()
    r_and_z, u_n = gates[..., : 2 * size], gates[..., 2 * size :]
    r, z = r_and_z.chunk(2, dim=-1)
    counted = len(starts(steps, 1))  # all steps, except within `few_chunks`: no step allocates memory
    parts = [part[:counted] for part in (gates, r_and_z, r, z, u_n, candidates, states)]
    with products_without_onednn():  # its overhead exceeds its gain on the small products of the loop
        for gates_t, r_and_z_t, r_t, z_t, u_n_t, n_t, state in zip(*(p.unbind(0) for p in parts), strict=True):
            gates_t.baddbmm_(previous, weight)
            r_and_z_t.sigmoid_()
            n_t.addcmul_(r_t, u_n_t).tanh_()
            previous = torch.lerp(n_t, previous, z_t, out=state)
    return states


@torch.library.custom_op("pgat::gru_bank_backward", mutates_args=())
def gru_bank_backward(
    gradient: Tensor,
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    result: Tensor,
    gates: Tensor,
    candidates: Tensor,
    dtype: torch.dtype,
    kernels: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute gradients of x, w_ih, w_hh, b_ih and b_hh of `gru_bank` from that of its result, [B, S, G, H].

    Takes, besides the arguments of `gru_bank`, its result and the kept tensors, see `gru_bank_operator`.
    """
    batch, steps, groups, _ = x.shape
    size, acc_dtype = w_hh.shape[2], result.dtype
    with no_autocast(x.device):
        inputs = _by_group(x.transpose(0, 1), dtype)
        previous = torch.cat((result.new_zeros(1, groups, batch, size), result[:, :-1].permute(1, 2, 0, 3)))
        before = _by_group(previous.transpose(1, 2), acc_dtype)  # [G, S * B, H]
        weight = w_hh.to(acc_dtype)
        if gates.dim() == 1:  # nothing is kept
            factors, n = _input_part(inputs, steps, w_ih, b_ih, b_hh, acc_dtype)  # [S, G, B, 3 H], [S, G, B, H]
            factors += _by_step(before @ weight.transpose(1, 2), steps)
            of_r, of_z, of_n = factors.chunk(3, dim=-1)  # at first r and z before the sigmoid, and u_n
            r, z = of_r.sigmoid(), of_z.sigmoid()
            n.addcmul_(r, of_n).tanh_()
        else:
            factors, n = gates.clone(), candidates
            of_r, of_z, of_n = factors.chunk(3, dim=-1)
            r, z, _ = gates.chunk(3, dim=-1)
        of_candidate = aten.tanh_backward(1 - z, n)
        of_r.copy_(aten.sigmoid_backward(of_candidate * of_n, r))
        of_z.copy_(aten.sigmoid_backward(previous.sub_(n), z))
        torch.mul(of_candidate, r, out=of_n)

        errors = gradient.to(acc_dtype).permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format)  # [S, G, B, H]
        weight = weight.contiguous()
        if _by_kernel(kernels, errors, size):
            from pgat_kernels.triton.gru import gru_scan_backward

            errors, factors = gru_scan_backward(errors, z.contiguous(), factors, weight)
        else:
            _errors_along_time(errors, z, factors, weight)

        g_gates = _by_group(factors.transpose(1, 2), acc_dtype)  # gradients of u, [G, S * B, 3 H]
        g_w_hh = g_gates.transpose(1, 2) @ before
        g_b_hh = g_gates.sum(dim=1)
        g_gates[..., 2 * size :] = _by_group(of_candidate.mul_(errors).transpose(1, 2), acc_dtype)  # now gradients of a
        g_b_ih = g_gates.sum(dim=1)
        cast_g_gates = g_gates.to(dtype)
        g_w_ih = cast_g_gates.transpose(1, 2) @ inputs
        g_x = (cast_g_gates @ w_ih.to(dtype)).view(groups, steps, batch, -1).permute(2, 1, 0, 3)
    return (
        g_x.to(x.dtype).contiguous(),
        g_w_ih.to(w_ih.dtype),
        g_w_hh.to(w_hh.dtype),
        g_b_ih.to(b_ih.dtype),
        g_b_hh.to(b_hh.dtype),
    )


def _errors_along_time(errors: Tensor, z: Tensor, factors: Tensor, weight: Tensor) -> None:
    """Replace g_t by e_t [S, G, B, H], and k_t by e_t k_t [S, G, B, 3 H], in place."""
    counted = len(starts(errors.shape[0], 1))  # all steps, except within `few_chunks`: no step allocates memory
    errors, z, factors = errors[:counted], z[:counted], factors[:counted]
    steps, groups, batch, size = errors.shape
    factors_at, split_at = factors.unbind(0), factors.view(steps, groups, batch, 3, size).unbind(0)
    errors_at, z_at = errors.unbind(0), z.unbind(0)
    with products_without_onednn():  # its overhead exceeds its gain on the small products of the loop
        for t in range(steps - 1, 0, -1):
            split_at[t].mul_(errors_at[t][:, :, None])
            errors_at[t - 1].addcmul_(errors_at[t], z_at[t]).baddbmm_(factors_at[t], weight)
        split_at[0].mul_(errors_at[0][:, :, None])


def _by_kernel(kernels: bool, x: Tensor, size: int) -> bool:
    """Return whether kernels compute the loops: if requested and available, in float32, up to `MOST_STATES` states."""
    return kernels and use_kernel("gru_bank", x.device, [x.dtype], x.dtype == torch.float32 and size <= MOST_STATES)


def _check(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> None:
    if x.dim() != 4 or w_hh.dim() != 3:
        raise ValueError(f"x must be [B, S, G, I] and w_hh [G, 3 H, H], not {list(x.shape)} and {list(w_hh.shape)}")
    groups, width, size = x.shape[2], x.shape[3], w_hh.shape[2]
    expected = {"w_ih": [groups, 3 * size, width], "w_hh": [groups, 3 * size, size]}
    expected |= {"b_ih": [groups, 3 * size], "b_hh": [groups, 3 * size]}
    for (name, shape), w in zip(expected.items(), (w_ih, w_hh, b_ih, b_hh), strict=True):
        if list(w.shape) != shape:
            raise ValueError(f"{name} must be {shape} for x {list(x.shape)} and {size} states, not {list(w.shape)}")


def _wide(x: Tensor) -> torch.dtype:
    """Return the dtype of the recurrence."""
    return torch.promote_types(x.dtype, torch.float32)


def _by_group(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a contiguous copy in `dtype` by group: [S, B, G, K] -> [G, S * B, K]."""
    steps, batch, groups, width = x.shape
    result = torch.empty(groups, steps, batch, width, dtype=dtype, device=x.device)
    return result.copy_(x.permute(2, 0, 1, 3)).view(groups, steps * batch, width)


def _by_step(x: Tensor, steps: int) -> Tensor:
    """Return a view by step: [G, S * B, K] -> [S, G, B, K]."""
    return x.view(x.shape[0], steps, -1, x.shape[2]).transpose(0, 1)


def _input_part(
    inputs: Tensor, steps: int, w_ih: Tensor, b_ih: Tensor, b_hh: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute the terms that do not depend on the state, of all steps, contiguous.

    [G, S * B, I] -> a_r + b_hh_r, a_z + b_hh_z and b_hh_n side by side [S, G, B, 3 H]; a_n [S, G, B, H]. The first
    result includes the bias of the product with the state, so that only W_hh h_{t-1} has to be added to it.
    """
    gates = 2 * (w_ih.shape[1] // 3)
    product = _by_step(inputs @ w_ih.to(inputs.dtype).transpose(1, 2), steps)
    b_ih, b_hh = b_ih.to(wide)[:, None], b_hh.to(wide)[:, None]
    first = torch.empty(product.shape, dtype=wide, device=inputs.device)
    torch.add(product[..., :gates], (b_ih + b_hh)[..., :gates], out=first[..., :gates])
    first[..., gates:] = b_hh[..., gates:]
    candidates = torch.empty((*product.shape[:-1], gates // 2), dtype=wide, device=inputs.device)
    return first, torch.add(product[..., gates:], b_ih[..., gates:], out=candidates)


@gru_bank_operator.register_fake
def _(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    dtype: torch.dtype,
    kernels: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, w_ih, w_hh, b_ih, b_hh)
    batch, steps, groups, _ = x.shape
    size, acc_dtype = w_hh.shape[2], _wide(x)
    kept = [(0,), (0,)] if recompute else [(steps, groups, batch, part * size) for part in (3, 1)]
    states, gates, candidates = (x.new_empty(shape, dtype=acc_dtype) for shape in ((batch, steps, groups, size), *kept))
    return states, gates, candidates


@gru_bank_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g_x, g_w_ih, g_w_hh, g_b_ih, g_b_hh = (tensor.new_empty(tensor.shape) for tensor in (x, w_ih, w_hh, b_ih, b_hh))
    return g_x, g_w_ih, g_w_hh, g_b_ih, g_b_hh


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dtype, ctx.kernels, _ = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None, *of_kept: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 8
    return (*gru_bank_backward(gradient, *ctx.saved_tensors, ctx.dtype, ctx.kernels), None, None, None)


gru_bank_operator.register_autograd(_backward, setup_context=_keep)


def _flops(x: Any, w_ih: Any) -> tuple[int, int]:
    """Return the FLOPs of a product with the input weights and with the recurrent ones, from the counter's shapes."""
    batch, steps, groups, inputs = x
    gates = w_ih[1]
    return 2 * batch * steps * groups * gates * inputs, 2 * batch * steps * groups * gates * (gates // 3)


@register_flop_formula(torch.ops.pgat.gru_bank)
def _(x: Any, w_ih: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sum(_flops(x, w_ih))


@register_flop_formula(torch.ops.pgat.gru_bank_backward)
def _(
    gradient: Any, x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, result: Any, gates: Any, *args: Any,
    out_shape: Any = None, **kwargs: Any,
) -> int:  # fmt: skip
    """Count the gradients of both factors of each product and, if nothing is kept, both recomputed products."""
    return (3 if len(gates) == 1 else 2) * sum(_flops(x, w_ih))
