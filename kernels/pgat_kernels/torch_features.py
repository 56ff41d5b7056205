"""What the supported versions of torch do differently, in one place: nothing else looks at what a version can do."""

import inspect
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, TypeVar

import torch
from torch.nn.parallel import DistributedDataParallel

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


def compile_apart(function: Callable[..., Result], **settings: Any) -> Callable[..., Result]:
    """Return `torch.compile(function, **settings)` whose compilations are counted apart from all others.

    torch counts compilations by code object and gives up at the ninth of one. All models share the code of
    `nn.Module`, so that without this the ninth model of a process would not be compiled. What is compiled here is a
    call of `function` that has a code object of its own. (`isolate_recompiles` of torch 2.13 does the same up to 256
    models; older versions lack it.)
    """

    def call(*args: Any, **kwargs: Any) -> Result:
        return function(*args, **kwargs)

    apart = FunctionType(call.__code__.replace(), call.__globals__, call.__name__, closure=(CellType(function),))
    compiled: Callable[..., Result] = torch.compile(apart, **settings)
    return compiled


def constant_when_compiled(function: Function) -> Function:
    """Have compiled code call `function` once, while it is compiled, and keep its result as a constant.

    It is `torch.compiler.assume_constant_result`, which sets the same mark but imports torch's compiler to do so: three
    seconds in a process that compiles nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled  # torch 2.11 cannot compile what it calls
def has_autocast(device_type: str) -> bool:
    """Return whether torch knows automatic mixed precision on this type of device."""
    return torch.amp.is_autocast_available(device_type)


def skip_buffer_broadcast() -> dict[str, Any]:
    """Return the argument by which `DistributedDataParallel` does not broadcast buffers before each forward pass.

    torch 2.13 has given it a new name, and warns of the old one.
    """
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
