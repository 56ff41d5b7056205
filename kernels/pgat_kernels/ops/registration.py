"""Registration of differentiable operators of rows and weights, with fake implementations and FLOP formulas."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from pgat_kernels.ops.dropout_masks import Masks

Backward = Callable[[Tensor], tuple[list[Tensor], list[Tensor]]]
"""Backward pass: gradient of the result -> gradients of rows and of weights."""


class Operators(NamedTuple):
    """An operator in torch's registry, and the operator that computes its gradients."""

    forward: Any
    backward: Any


def register(
    name: str,
    forward: Callable[..., Tensor],
    backward: Callable[..., list[Tensor]],
    like: Callable[[list[Tensor], list[Tensor]], Tensor],
    empty_gradients: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
    forward_flops: Callable[..., int],
    backward_flops: Callable[..., int],
) -> Operators:
    """Register `pgat::NAME` and `pgat::NAME_backward`, and return them.

    Args:
        name: of the operator in torch's registry.
        forward: function (rows, weights, *tensors, *plain) -> result, with annotated arguments. `tensors`, such as a
            seed, have no gradient; `plain` are numbers, lists of numbers and dtypes.
        backward: function (gradient of the result, *arguments of `forward`) -> gradients of rows, then of weights.
        like: maps rows and weights to an empty tensor of the result's shape and dtype.
        empty_gradients: maps rows and weights to empty tensors in the shapes and dtypes that `backward` returns.
        forward_flops, backward_flops: FLOPs of both, of their arguments.

    The forward operator keeps its arguments for the backward pass, and nothing else.
    """
    operator = torch.library.custom_op(f"pgat::{name}", forward, mutates_args=())
    operator.register_fake(lambda rows, weights, *others: like(rows, weights))
    backward_operator = torch.library.custom_op(f"pgat::{name}_backward", backward, mutates_args=())
    backward_operator.register_fake(lambda g, rows, weights, *others: empty_gradients(rows, weights))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows, weights, *others = inputs
        tensors = [x for x in others if isinstance(x, Tensor)]
        ctx.counts, ctx.plain = (len(rows), len(weights)), others[len(tensors) :]
        ctx.save_for_backward(*rows, *weights, *tensors)

    def autograd(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        n_rows, n_weights = ctx.counts
        saved = ctx.saved_tensors
        rows, weights, tensors = saved[:n_rows], saved[n_rows : n_rows + n_weights], saved[n_rows + n_weights :]
        grads = backward_operator(g.contiguous(), rows, weights, *tensors, *ctx.plain)
        cast = [grad.to(x.dtype) for grad, x in zip(grads, (*rows, *weights), strict=True)]
        return cast[:n_rows], cast[n_rows:], *(None,) * (len(tensors) + len(ctx.plain))

    operator.register_autograd(autograd, setup_context=setup_context)
    for registered, flops in ((operator, forward_flops), (backward_operator, backward_flops)):
        register_flop_formula(registered._opoverload._overloadpacket, get_raw=True)(flops)
    return Operators(operator, backward_operator)


class FlopCounter(FlopCounterMode):
    """A counter of all FLOPs together that neither prints a table nor adds hooks to all modules of the process.

    `FlopCounterMode` does, to count each module separately. Its hooks also run for modules that other threads call.
    """

    class _NoModules:
        parents = frozenset({"Global"})

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    def __init__(self, custom_mapping: dict[Any, Any] | None = None) -> None:
        super().__init__(display=False, custom_mapping=custom_mapping)
        self.mod_tracker = FlopCounter._NoModules()  # type: ignore[assignment]  # has all that is used of a tracker


def count_flops(
    program: Callable[..., tuple[Tensor, Backward]],
    rows: list[Tensor],
    weights: list[Tensor],
    how: Any,
    *,
    backward: bool,
) -> int:
    """Count the FLOPs of the products of a program on tensors without data; `how` is its last argument."""
    with torch.device("meta"), FlopCounter() as counter:
        meta_rows, meta_weights = (
            [torch.empty(x.shape, dtype=x.dtype) for x in tensors] for tensors in (rows, weights)
        )
        start = torch.empty((), dtype=torch.int64)
        y, back = program(meta_rows, meta_weights, Masks(0.0, start, start), how)
        if backward:
            back(torch.empty_like(y))
    return int(counter.get_total_flops())
