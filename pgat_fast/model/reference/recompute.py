"""Activation checkpointing of a block: the backward pass recomputes the forward pass."""

import ctypes
import os
import sys
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import _StopRecomputationError, checkpoint

from pgat_fast.model.replica import replica

_drawing = RLock()
"""Held while a block with dropout runs on a CPU: it and its recomputation must draw the same random numbers."""
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_drawing.acquire, after_in_parent=_drawing.release, after_in_child=_drawing.release)


def recompute_in_backward(block: nn.Module, *inputs: Tensor) -> Tensor:
    """Call `block(*inputs)` and keep only the inputs for the backward pass.

    The current parameters of the block are captured: under `torch.func.functional_call` the block has other parameters
    when the backward pass runs, and would silently compute another function. A program of `torch.export` cannot contain
    the recomputation, and gets the block alone.

    Several threads may compute forward and backward passes at once. On a CPU, blocks with dropout wait for each other,
    since the recomputation sets torch's generator, which all threads share, and restores it.

    Raises:
        RuntimeError: in the backward pass, if another thread drew random numbers while a block with dropout ran: its
            masks cannot be drawn again.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return block(*inputs)
    parameters = dict(block.named_parameters(remove_duplicate=False))
    result: Tensor
    if torch.compiler.is_dynamo_compiling():
        tensors = parameters | dict(block.named_buffers())

        def call(*args: Tensor) -> Any:
            return functional_call(block, tensors, args)

        result = checkpoint(call, *inputs, use_reentrant=False)
        return result
    copy = replica(block, parameters)
    has_dropout, on_cpu = _has_dropout(block), all(x.device.type == "cpu" for x in inputs)
    run = _SameDraws(copy) if has_dropout and on_cpu else copy
    result = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=has_dropout and not on_cpu)
    return result


def _has_dropout(block: nn.Module) -> bool:
    """Return whether the block draws random numbers."""
    for module in block.modules():
        if module.training:
            rate = module.dropout if isinstance(module, nn.MultiheadAttention) else getattr(module, "p", 0.0)
            if rate > 0:
                return True
    return False


def _bytes(state: Tensor) -> bytes:
    """Return the content of a generator's state, by no operator of torch: a plan counts those."""
    return ctypes.string_at(state.data_ptr(), state.nbytes)


class _SameDraws:
    """A block that draws the same random numbers in every call; only the first call advances torch's generator."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._states: tuple[Tensor, Tensor] | None = None
        """State of the generator before and after the first call."""

    def __call__(self, *inputs: Tensor) -> Any:
        with _drawing:
            if self._states is None:
                before = torch.get_rng_state()
                result = self._block(*inputs)
                self._states = before, torch.get_rng_state()
                return result
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self._states[0])
                try:
                    return self._block(*inputs)
                finally:
                    # torch ends the call by an exception once it has what the backward pass needs, after all draws.
                    ended = sys.exc_info()[0] in (None, _StopRecomputationError)
                    if ended and _bytes(torch.get_rng_state()) != _bytes(self._states[1]):
                        raise RuntimeError(
                            "another thread drew random numbers from torch's generator during a forward or backward "
                            "pass of the reference model, whose dropout masks are lost: do not draw meanwhile, or use "
                            "the backend torch"
                        )
