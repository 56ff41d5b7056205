"""Activation checkpointing of a block: the backward pass recomputes the forward pass."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recompute_in_backward(block: nn.Module, *inputs: Tensor) -> Tensor:
    """Call `block(*inputs)` and keep only the inputs for the backward pass.

    The current parameters of the block are captured: under `torch.func.functional_call` the block has other parameters
    when the backward pass runs, and would silently compute another function. A program of `torch.export` cannot contain
    the recomputation, and gets the block alone.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return block(*inputs)
    tensors = dict(block.named_parameters()) | dict(block.named_buffers())

    def call(*args: Tensor) -> Any:
        return functional_call(block, tensors, args)

    return checkpoint(call, *inputs, use_reentrant=False)
