"""Weights, gradients and optimizer spread over ranks by torch's `fully_shard` (FSDP2): each holds a part of every one.

A part of the model gets its weights from all ranks right before it computes and lets go of them afterwards, so that a
rank needs the memory of one part's weights at a time (Zhao et al., PyTorch FSDP, 2023), and with gradient accumulation
that of all gradients. Imports what takes half a
second: imported where it is asked for.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pgat_fast.model import parts_of

_SMALLEST: Final = 0.01
"""Share of the model's parameters below which a part has no all-gather of its own: it goes with the rest."""


def shard(model: nn.Module, device: torch.device, ranks: int) -> nn.Module:
    """Leave each of `ranks` its part of the parameters of `model`, in place; they become `DTensor`s. Called by all.

    `model` may be on the CPU: part by part it moves to `device`.
    Its parts (`parts_of`) gather their weights one after the other.
    """
    # Torch warns of changes in place to what a part returns, where that is a view. Nothing here makes any.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (ranks,))
    for part in gathered_parts(model):
        fully_shard(part, mesh=mesh)
    return model


def gathered_parts(model: nn.Module) -> list[nn.Module]:
    """What gathers its weights by itself: the parts with many of them; at last the model, for all others."""
    total = _numbers(model)
    return [part for part in parts_of(model) if _numbers(part) >= _SMALLEST * total] + [model]


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@contextmanager
def adding_up(model: nn.Module, now: bool) -> Iterator[None]:
    """Around a forward and a backward pass of what `shard` has changed; unless `now`, gradients stay with the rank."""
    assert isinstance(model, FSDPModule)
    model.set_is_last_backward(now)
    model.set_requires_gradient_sync(now)
    yield


def whole(tree: Any, *, keep: bool) -> Any:
    """Nested dicts and lists with every tensor put together from its parts, on the CPU. Called by all.

    Without `keep`, the rank takes part and gets None in place of tensors.
    """
    if isinstance(tree, DTensor):
        tensor: Tensor = tree.full_tensor().detach()
        return tensor.cpu() if keep else None
    if isinstance(tree, dict):
        return {key: whole(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(value, keep=keep) for value in tree)
    return tree


def spread(tree: dict[Any, Any], like: Mapping[Any, Tensor]) -> dict[Any, Any]:
    """`tree` with every tensor of the size of `like[key]` distributed as that one; all ranks have the same `tree`."""
    return {key: _held_as(value, like.get(key)) for key, value in tree.items()}


def _held_as(value: Any, like: Tensor | None) -> Any:
    if isinstance(value, dict):
        return {key: _held_as(one, like) for key, one in value.items()}
    if isinstance(value, Tensor) and isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value
