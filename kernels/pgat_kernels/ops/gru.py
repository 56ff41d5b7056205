"""G recurrences (GRUs) of one size, in one scan along time (rewrite 6).

With the input x_t, the state h_{t-1} and the three blocks of rows of W_ih, W_hh, b_ih and b_hh (the order and the
formulas of `torch.nn.GRU`, where the reset gate r stands inside the candidate n):

    a_t = W_ih x_t + b_ih,   u_t = W_hh h_{t-1} + b_hh
    r = sigmoid(a_r + u_r),   z = sigmoid(a_z + u_z),   n = tanh(a_n + r u_n)
    h_t = (1 - z) n + z h_{t-1},   h_0 = 0.

Forward: all a_t are one product outside of the loop. Within it a step is one batched product and four elementwise
operations, in place in the buffer that the products were written to.

Backward: given all states, the u_t, hence the gates of all steps, are one product again and need not be kept. The
gradient e_t of h_t meets the gates only as a factor: the gradients of u_t are e_t k_t with

    k_n' = (1 - z) (1 - n^2),   k_n = k_n' r,   k_r = k_n' u_n r (1 - r),   k_z = (h_{t-1} - n) z (1 - z),

and those of a_t are the same, but e_t k_n' for n. All k_t are made outside of the loop. What is left in it is

    e_{t-1} = g_{t-1} + z e_t + W_hh' (e_t k_t),   g_t the gradient of the result,

three operations a step. The gradients of the weights are sums over all steps, one product each behind the loop.

Saved for the backward pass: the arguments and the result; without `recompute` also r, z, u_n and n of all steps, four
times the result, for which the backward pass takes two of its six products less. All is float32 or float64, but the
factors of the products with W_ih, which may be 16 bits wide.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from pgat_kernels.dispatch import use_kernel
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.chunked_ops import starts

aten = torch.ops.aten

MOST_STATES = 128
"""That a kernel takes."""


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
    """The states of G GRUs at every step, from zero states on.

    Args:
        x: inputs, [B, S, G, I], any float dtype and strides.
        w_ih: input weights, [G, 3 H, I]: rows of the reset gate, the update gate and the candidate.
        w_hh: recurrent weights, [G, 3 H, H].
        b_ih, b_hh: biases, [G, 3 H].
        dtype: of the factors of the products with `w_ih`; the recurrence is at least float32 whatever it is.
        kernels: whether the loops along time may be Triton kernels: one launch each.
        recompute: whether the backward pass computes the gates of all steps again, or they are kept for it.

    Returns:
        [B, S, G, H], in the wider of float32 and the dtype of `x`.

    Raises:
        ValueError: shapes that do not fit each other.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014, in the variant of
    `torch.nn.GRU`.
    """
    states: Tensor = gru_bank_operator(x, w_ih, w_hh, b_ih, b_hh, dtype, kernels, recompute)[0]
    return states


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
    """See `gru_bank`; also what is kept: r, z and u_n side by side [S, G, B, 3 H], and n [S, G, B, H], or nothing."""
    _check(x, w_ih, w_hh, b_ih, b_hh)
    steps, size, wide = x.shape[1], w_hh.shape[2], _wide(x)
    with no_autocast(x.device):
        gates, candidates = _input_part(_by_group(x.transpose(0, 1), dtype), steps, w_ih, b_ih, b_hh, wide)
        if _by_kernel(kernels, gates, size):
            from pgat_kernels.triton.gru import gru_scan

            states = gru_scan(gates, candidates, w_hh.to(wide).contiguous(), keep=not recompute)
        else:
            states = _states_along_time(gates, candidates, w_hh.to(wide))
    kept = (gates.new_empty(0), gates.new_empty(0)) if recompute else (gates, candidates)
    return states.permute(2, 0, 1, 3).contiguous(), *kept


def _states_along_time(gates: Tensor, candidates: Tensor, weight: Tensor) -> Tensor:
    """[S, G, B, 3 H], [S, G, B, H], [G, 3 H, H] -> [S, G, B, H]; `gates` and `candidates` become r, z, u_n and n."""
    steps, groups, batch, size = candidates.shape
    states = gates.new_empty(steps, groups, batch, size)
    previous = gates.new_zeros(groups, batch, size)
    weight = weight.transpose(1, 2).contiguous()
    r_and_z, u_n = gates[..., : 2 * size], gates[..., 2 * size :]
    r, z = r_and_z.chunk(2, dim=-1)
    counted = len(starts(steps, 1))  # all of them, but see `few_chunks`: no step allocates anything
    parts = [part[:counted] for part in (gates, r_and_z, r, z, u_n, candidates, states)]
    with _small_products():
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
    """Gradients of x, w_ih, w_hh, b_ih and b_hh of `gru_bank` from that of its result, [B, S, G, H].

    Args beside those of `gru_bank`: its result, and what is kept of it, see `gru_bank_operator`.
    """
    batch, steps, groups, _ = x.shape
    size, wide = w_hh.shape[2], result.dtype
    with no_autocast(x.device):
        inputs = _by_group(x.transpose(0, 1), dtype)
        previous = torch.cat((result.new_zeros(1, groups, batch, size), result[:, :-1].permute(1, 2, 0, 3)))
        before = _by_group(previous.transpose(1, 2), wide)  # [G, S * B, H]
        weight = w_hh.to(wide)
        if gates.dim() == 1:  # nothing is kept
            factors, n = _input_part(inputs, steps, w_ih, b_ih, b_hh, wide)  # [S, G, B, 3 H], [S, G, B, H]
            factors += _by_step(before @ weight.transpose(1, 2), steps)
            of_r, of_z, of_n = factors.chunk(3, dim=-1)  # at first r and z before their sigmoid, and u_n
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

        errors = gradient.to(wide).permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format)  # [S, G, B, H]
        weight = weight.contiguous()
        if _by_kernel(kernels, errors, size):
            from pgat_kernels.triton.gru import gru_scan_backward

            errors, factors = gru_scan_backward(errors, z.contiguous(), factors, weight)
        else:
            _errors_along_time(errors, z, factors, weight)

        g_gates = _by_group(factors.transpose(1, 2), wide)  # of u, [G, S * B, 3 H]
        g_w_hh = g_gates.transpose(1, 2) @ before
        g_b_hh = g_gates.sum(dim=1)
        g_gates[..., 2 * size :] = _by_group(of_candidate.mul_(errors).transpose(1, 2), wide)  # now of a
        g_b_ih = g_gates.sum(dim=1)
        low = g_gates.to(dtype)
        g_w_ih = low.transpose(1, 2) @ inputs
        g_x = (low @ w_ih.to(dtype)).view(groups, steps, batch, -1).permute(2, 1, 0, 3)
    return (
        g_x.to(x.dtype).contiguous(),
        g_w_ih.to(w_ih.dtype),
        g_w_hh.to(w_hh.dtype),
        g_b_ih.to(b_ih.dtype),
        g_b_hh.to(b_hh.dtype),
    )


def _errors_along_time(errors: Tensor, z: Tensor, factors: Tensor, weight: Tensor) -> None:
    """From g_t to e_t, and from k_t to e_t k_t, in place: [S, G, B, H] and [S, G, B, 3 H]."""
    counted = len(starts(errors.shape[0], 1))  # all steps, but see `few_chunks`: none allocates anything
    errors, z, factors = errors[:counted], z[:counted], factors[:counted]
    steps, groups, batch, size = errors.shape
    factors_at, split_at = factors.unbind(0), factors.view(steps, groups, batch, 3, size).unbind(0)
    errors_at, z_at = errors.unbind(0), z.unbind(0)
    with _small_products():
        for t in range(steps - 1, 0, -1):
            split_at[t].mul_(errors_at[t][:, :, None])
            errors_at[t - 1].addcmul_(errors_at[t], z_at[t]).baddbmm_(factors_at[t], weight)
        split_at[0].mul_(errors_at[0][:, :, None])


def _by_kernel(kernels: bool, x: Tensor, size: int) -> bool:
    """Whether the loops are kernels: where they are asked for and run, in float32, for so many states."""
    return kernels and use_kernel("gru_bank", x.device, [x.dtype], x.dtype == torch.float32 and size <= MOST_STATES)


def _check(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> None:
    if x.dim() != 4 or w_hh.dim() != 3:
        raise ValueError(f"x must be [B, S, G, I] and w_hh [G, 3 H, H], not {list(x.shape)} and {list(w_hh.shape)}")
    groups, width, size = x.shape[2], x.shape[3], w_hh.shape[2]
    expected = {"w_ih": [groups, 3 * size, width], "w_hh": [groups, 3 * size, size]}
    expected |= {"b_ih": [groups, 3 * size], "b_hh": [groups, 3 * size]}
    for (name, shape), own in zip(expected.items(), (w_ih, w_hh, b_ih, b_hh), strict=True):
        if list(own.shape) != shape:
            raise ValueError(f"{name} must be {shape} for x {list(x.shape)} and {size} states, not {list(own.shape)}")


def _wide(x: Tensor) -> torch.dtype:
    """What the recurrence is computed in."""
    return torch.promote_types(x.dtype, torch.float32)


def _by_group(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[S, B, G, K] -> [G, S * B, K] in `dtype`, contiguous, a copy."""
    steps, batch, groups, width = x.shape
    result = torch.empty(groups, steps, batch, width, dtype=dtype, device=x.device)
    return result.copy_(x.permute(2, 0, 1, 3)).view(groups, steps * batch, width)


def _by_step(x: Tensor, steps: int) -> Tensor:
    """[G, S * B, K] -> [S, G, B, K], a view."""
    return x.view(x.shape[0], steps, -1, x.shape[2]).transpose(0, 1)


def _input_part(
    inputs: Tensor, steps: int, w_ih: Tensor, b_ih: Tensor, b_hh: Tensor, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What the state has no part in, of all steps, contiguous.

    [G, S * B, I] -> a_r + b_hh_r, a_z + b_hh_z and b_hh_n side by side [S, G, B, 3 H]; a_n [S, G, B, H]. The bias of
    the product with the state is in both, so that W_hh h_{t-1} is all that is left to add to the first.
    """
    gates = 2 * (w_ih.shape[1] // 3)
    product = _by_step(inputs @ w_ih.to(inputs.dtype).transpose(1, 2), steps)
    b_ih, b_hh = b_ih.to(wide)[:, None], b_hh.to(wide)[:, None]
    first = torch.empty(product.shape, dtype=wide, device=inputs.device)
    torch.add(product[..., :gates], (b_ih + b_hh)[..., :gates], out=first[..., :gates])
    first[..., gates:] = b_hh[..., gates:]
    candidates = torch.empty((*product.shape[:-1], gates // 2), dtype=wide, device=inputs.device)
    return first, torch.add(product[..., gates:], b_ih[..., gates:], out=candidates)


@contextmanager
def _small_products() -> Iterator[None]:
    """For the products of the loop: not through oneDNN, which costs more than it gives where they are so small.

    They are IEEE float32 on a CPU then, whatever is allowed.
    """
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    try:
        setting.fp32_precision = "ieee"
        yield
    finally:
        setting.fp32_precision = before


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
    size, wide = w_hh.shape[2], _wide(x)
    kept = [(0,), (0,)] if recompute else [(steps, groups, batch, part * size) for part in (3, 1)]
    states, gates, candidates = (x.new_empty(shape, dtype=wide) for shape in ((batch, steps, groups, size), *kept))
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
    """Of a product with the input weights, and of one with the recurrent ones; of shapes as the counter hands them."""
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
    """The gradients of both factors of each product, and, where nothing is kept, both products again."""
    return (3 if len(gates) == 1 else 2) * sum(_flops(x, w_ih))
