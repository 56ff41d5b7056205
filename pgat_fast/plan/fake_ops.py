"""Substitutes for operators while a step is counted on fake tensors.

`GRU` replaces the slowest part of counting the reference, 13 recurrences of S steps, by a few operators that keep the
same bytes and compute the same products. `cuda_operators` replaces operators on CPU tensors by those of a GPU where
these keep other bytes, and gives our own operators their chunk sizes on a GPU. Fake CUDA tensors cannot be used: they
abort the process if torch was built without CUDA.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_kernels.instrumentation import chunk_sizes_of

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


class GRU(nn.Module):
    """Substitute for a one-layer `torch.nn.GRU` with as many inputs as states; its result is not initialised.

    A step of the real GRU multiplies [B, C] by [C, 3 C] twice, and its backward pass four times; the substitute does
    the same for all steps at once. It counts one product more than the real GRU, whose first state needs no gradient.
    In mixed precision it keeps float32, about as many bytes as the real GRU, which keeps some tensors in both types.
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        if gru.num_layers != 1 or gru.bidirectional or gru.input_size != gru.hidden_size or not gru.batch_first:
            raise ValueError(f"{gru} is not a GRU of one layer and one width, batch first")
        for name, parameter in gru.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Return a tensor [B, S, C] for x [B, S, C], and None as the last state."""
        return _Recurrence.apply(x.float(), *self.parameters()), None  # type: ignore[no-untyped-call]


def replace_recurrences(model: nn.Module) -> None:
    """Replace every `torch.nn.GRU` of `model` by its substitute, in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GRU):
                setattr(module, name, GRU(child))


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Apply dropout as on a GPU, whose mask has one byte an element; that of a CPU has the type of `x`."""
    return torch.native_dropout(x, p, train=True)[0] if training and p > 0 else x


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, scale: float) -> Tensor:
    """Compute attention as `scaled_dot_product_attention` does on a GPU without a mask, by kernels that keep no scores.

    In 16 bits it is flash attention, with heads padded to a multiple of 8 columns.
    """
    depth = q.shape[-1]
    if q.dtype.itemsize == 2:
        padded = (F.pad(x, (0, -depth % 8)) for x in (q, k, v))
        y: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(*padded, dropout_p, scale=scale)[0]
        return y[..., :depth]
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    y = efficient(q, k, v, None, torch.is_grad_enabled(), dropout_p, scale=scale)[0]
    return y


@contextmanager
def cuda_operators() -> Iterator[None]:
    """Use dropout, attention and chunks of a GPU within the context; under autocast softmax and layer norm are float32.

    Source: the lists of operators in PyTorch's documentation of `torch.amp`. On a CPU both stay in 16 bits.
    """
    softmax, layer_norm, attention = F.softmax, F.layer_norm, F.scaled_dot_product_attention

    def in_float32(x: Tensor) -> Tensor:
        return x.float() if torch.is_autocast_enabled("cpu") else x

    def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any) -> Tensor:
        if args or named.keys() - {"dropout_p", "scale"}:  # with a mask
            return attention(q, k, v, *args, **named)
        scale = named.get("scale") or q.shape[-1] ** -0.5
        return _fused_attention(q, k, v, named.get("dropout_p", 0.0), scale)

    stand_ins: dict[str, Any] = {
        "dropout": _dropout,
        "scaled_dot_product_attention": attend,
        "softmax": lambda x, *args, **named: softmax(in_float32(x), *args, **named),
        "layer_norm": lambda x, *args, **named: layer_norm(in_float32(x), *args, **named),
    }
    originals = {name: getattr(F, name) for name in stand_ins}
    try:
        for name, stand_in in stand_ins.items():
            setattr(F, name, stand_in)
        with chunk_sizes_of("cuda"):
            yield
    finally:
        for name, original in originals.items():
            setattr(F, name, original)
