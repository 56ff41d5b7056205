"""Differences between the supported versions of torch. No other module tests for features of a version."""

import inspect
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


def compile_apart(function: Callable[..., Result], **settings: Any) -> Callable[..., Result]:
    """Return `torch.compile(function, **settings)` with its own limit of recompilations.

    torch counts compilations by code object and gives up at the ninth. All models share the code of `nn.Module`, so
    without this the ninth model of a process would not be compiled. The compiled function is a wrapper of `function`
    with its own code object. (`isolate_recompiles` of torch 2.13 does the same up to 256 models; older versions lack
    it.)
    """

    def call(*args: Any, **kwargs: Any) -> Result:
        return function(*args, **kwargs)

    wrapper = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, closure=(CellType(function),))
    compiled: Callable[..., Result] = torch.compile(wrapper, **settings)
    return compiled


def constant_when_compiled(function: Function) -> Function:
    """Mark `function` to be called once during compilation, with its result kept as a constant.

    It replaces `torch.compiler.assume_constant_result`, which sets the same attribute but imports torch's compiler:
    three seconds in a process that compiles nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch does
    return function


@constant_when_compiled  # torch 2.11 cannot compile the call
def has_autocast(device_type: str) -> bool:
    """Return whether torch supports automatic mixed precision on this type of device."""
    return torch.amp.is_autocast_available(device_type)


def skip_buffer_broadcast() -> dict[str, Any]:
    """Return the keyword argument that stops `DistributedDataParallel` from broadcasting buffers before each forward.

    torch 2.13 renamed it and warns about the old name.
    """
    parameters = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers": False}
