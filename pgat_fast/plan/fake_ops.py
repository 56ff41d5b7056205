"""Substitutes for operators while a step is counted on fake tensors.

`GRU` replaces the slowest part of counting the reference, 13 recurrences of S steps, by a few operators that keep the
same bytes and compute the same products. `cuda_operators` replaces operators on CPU tensors by those of a GPU where
these keep other bytes, and gives our own operators their chunk sizes on a GPU. Fake CUDA tensors cannot be used: they
abort the process if torch was built without CUDA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_fast.model.optimized.phase import Recurrence
from pgat_kernels.instrumentation import chunk_sizes_of
from pgat_kernels.process_settings import SharedSetting

GRU_KEPT = 8
"""Number of tensors [B, C] a step that a GRU keeps for its backward pass besides its result, counted on torch 2.13 (7
if B is 1, where a transposition makes no copy)."""


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_input: Tensor, w_hidden: Tensor, *biases: Tensor) -> Tensor:
        batch, steps, width = x.shape
        flat = x.reshape(-1, width)
        flat @ w_input.t()
        flat @ w_hidden.t()
        kept = x.new_empty(GRU_KEPT - (batch == 1), batch, steps, width)
        # The real GRU keeps a transposed copy of the input, or the input itself if B is 1.
        ctx.save_for_backward(x if batch == 1 else kept[0], w_input, w_hidden, *biases, kept)
        return x.new_empty(batch, steps, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x, w_input, w_hidden, *biases, _ = ctx.saved_tensors
        flat = x.reshape(-1, x.shape[-1])
        gates = flat.new_empty(len(flat), len(w_input))
        into_x, _ = (gates @ w_input).view_as(x), gates @ w_hidden
        return into_x, gates.t() @ flat, gates.t() @ flat, *(torch.empty_like(bias) for bias in biases)


class GRU(Recurrence):
    """Substitute for a one-layer `torch.nn.GRU` with as many inputs as states; its result is not initialised.

    A step of the real GRU multiplies [B, C] by [C, 3 C] twice, and its backward pass four times; the substitute does
    the same for all steps at once. It counts one product more than the real GRU, whose first state needs no gradient.
    In mixed precision it keeps float32, about as many bytes as the real GRU, which keeps some tensors in both types.
    """

    def __init__(self, gru: nn.GRU) -> None:
        if gru.num_layers != 1 or gru.bidirectional or gru.input_size != gru.hidden_size or not gru.batch_first:
            raise ValueError(f"{gru} is not a GRU of one layer and one width, batch first")
        super().__init__(gru)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Return a tensor [B, S, C] for x [B, S, C], and None as the last state."""
        return _Recurrence.apply(x.float(), *self.parameters()), None  # type: ignore[no-untyped-call]  # untyped in torch


def replace_recurrences(model: nn.Module) -> None:
    """Replace every `torch.nn.GRU` of `model` by its substitute, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GRU):
                setattr(module, name, GRU(child))


# --- operators of a GPU ----------------------------------------------------------------------------------------------

_on_gpu: Final = ContextVar("cuda_operators", default=False)
"""Whether this thread counts the operators of a GPU."""
_originals: Final = {
    name: getattr(F, name) for name in ("dropout", "softmax", "layer_norm", "scaled_dot_product_attention")
}


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Apply dropout as on a GPU, whose mask has one byte an element; that of a CPU has the type of `x`."""
    if not _on_gpu.get():
        return _originals["dropout"](x, p, training, inplace)
    return torch.native_dropout(x, p, train=True)[0] if training and p > 0 else x


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, scale: float) -> Tensor:
    """Compute attention as `scaled_dot_product_attention` does on a GPU without a mask, by kernels that keep no scores.

    Heads have a multiple of 8 columns (`pgat_kernels.ops.attention`).
    """
    if q.dtype.itemsize == 2:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, scale=scale)[0]
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    y = efficient(q, k, v, None, torch.is_grad_enabled(), dropout_p, scale=scale)[0]
    return y


def _in_float32(x: Tensor) -> Tensor:
    return x.float() if _on_gpu.get() and torch.is_autocast_enabled("cpu") else x


def _softmax(x: Tensor, *args: Any, **named: Any) -> Any:
    return _originals["softmax"](_in_float32(x), *args, **named)


def _layer_norm(x: Tensor, *args: Any, **named: Any) -> Any:
    return _originals["layer_norm"](_in_float32(x), *args, **named)


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any) -> Any:
    if (
        not _on_gpu.get() or args or named.keys() - {"dropout_p", "scale"} or q.shape[-1] % 8
    ):  # with a mask, or unpadded
        return _originals["scaled_dot_product_attention"](q, k, v, *args, **named)
    return _fused_attention(q, k, v, named.get("dropout_p", 0.0), named.get("scale") or q.shape[-1] ** -0.5)


def _set_functions(functions: dict[str, Any]) -> None:
    for name, function in functions.items():
        setattr(F, name, function)


_FUNCTIONS: Final = SharedSetting(lambda: {name: getattr(F, name) for name in _originals}, _set_functions)


@contextmanager
def cuda_operators() -> Iterator[None]:
    """Use dropout, attention and chunks of a GPU within the context; under autocast softmax and layer norm are float32.

    Other threads that call these functions of torch meanwhile get those of a CPU.

    Source: the lists of operators in PyTorch's documentation of `torch.amp`. On a CPU both stay in 16 bits.
    """
    stand_ins = {
        "dropout": _dropout,
        "softmax": _softmax,
        "layer_norm": _layer_norm,
        "scaled_dot_product_attention": _attention,
    }
    token = _on_gpu.set(True)
    try:
        with _FUNCTIONS.set_to(stand_ins), chunk_sizes_of("cuda"):
            yield
    finally:
        _on_gpu.reset(token)
