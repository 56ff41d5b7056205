"""Compilation of plain tensor functions, once for all layers and chunks that call them with equal shapes."""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

_compiled: dict[Any, Callable[..., Any]] = {}
"""Functions and descriptions of their arguments -> compiled functions, for the life of the process.

Threads may share it: an entry is added by one atomic operation and never replaced."""


def call_compiled(function: Callable[..., Any], *args: Any, dynamic: bool = False) -> Any:
    """Return `function(*args)`, compiled for the shapes, dtypes and plain values of `args` and torch's other guards.

    With `dynamic` one compilation serves all sizes above 1. Each compilation has its own code object, because torch
    counts compilations by code object and gives up after a few.
    """

    def describe(x: Any) -> Any:
        if isinstance(x, Tensor):
            layout = (x.dim(), x.is_contiguous()) if dynamic else (x.shape, x.stride())
            return *layout, x.dtype, x.device, x.requires_grad, torch._C._dispatch_keys(x).raw_repr()
        return tuple(map(describe, x)) if isinstance(x, list | tuple) else x

    key = function, describe(args)
    compiled = _compiled.get(key)
    if compiled is None:
        assert isinstance(function, FunctionType)
        function_copy = FunctionType(
            function.__code__.replace(), function.__globals__, closure=function.__closure__, name=function.__name__
        )
        compiled = _compiled.setdefault(key, torch.compile(function_copy, fullgraph=True, dynamic=dynamic))
    # Operators are called above and below torch's autograd; a compilation is valid for one of the two states.
    views = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
    with torch._C._AutoDispatchBelowAutograd(), torch._C._ExcludeDispatchKeyGuard(views):
        return compiled(*args)


def how_compiled(
    program: Callable[..., Any], compile_chunks: bool, device: torch.device
) -> tuple[Callable[..., Any], bool]:
    """Return the program to call, and whether its fragments (`Masks.run`) are compiled.

    On a CPU only fragments are compiled: products are library calls either way, and the dozen fragments that layers
    share compile in a third of the time of whole programs and run as fast. On a GPU the whole program is compiled, to
    reduce the number of launches.
    """
    if compile_chunks and device.type != "cpu":
        return partial(call_compiled, program), False
    return program, compile_chunks
