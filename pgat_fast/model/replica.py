"""Calls of a module with other parameters, which change nothing in the module: any number of threads may make them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def call_with_parameters(module: nn.Module, parameters: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> Any:
    """Return `module(*inputs)` computed with `parameters` instead of those of the module.

    `torch.func.functional_call` does the same by exchanging the parameters of the module until the call returns, so
    that another thread which calls the module meanwhile computes with the wrong ones. Here the call runs on a
    `replica`. Only a compiler that traces the call itself gets `functional_call`, which it supports.

    Args:
        module: any module.
        parameters: name -> tensor, for every name of `module.named_parameters()`.
        inputs: positional arguments of the module.

    Raises:
        KeyError: the tensor of a parameter is missing.
    """
    if torch.compiler.is_dynamo_compiling():
        return functional_call(module, dict(parameters), inputs)
    return replica(module, parameters)(*inputs)


def replica(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of the tree of `module` and its submodules with other parameters.

    Buffers, hooks and plain attributes are those of `module`; assignments to the attributes of the copy do not change
    it. Takes about a microsecond for each submodule.

    Args:
        module: a module whose submodules are reached through its attributes alone.
        parameters: name -> tensor, for every name of `module.named_parameters()`. They become the parameters of the
            copy as they are, also if they are views or results of other operations.

    Raises:
        KeyError: the tensor of a parameter is missing.
    """
    return _copy(module, "", parameters, {})


def _copy(
    module: nn.Module, prefix: str, parameters: Mapping[str, Tensor], copies: dict[nn.Module, nn.Module]
) -> nn.Module:
    """Copy `module`, whose parameter names begin with `prefix`; `copies` are the copies of modules used twice."""
    if module in copies:
        return copies[module]
    copies[module] = copy = object.__new__(type(module))
    attributes = copy.__dict__
    attributes.update(module.__dict__)
    attributes["_parameters"] = {
        name: None if parameter is None else parameters[prefix + name] for name, parameter in module._parameters.items()
    }
    attributes["_buffers"] = module._buffers.copy()
    attributes["_modules"] = {
        name: None if child is None else _copy(child, f"{prefix}{name}.", parameters, copies)
        for name, child in module._modules.items()
    }
    return copy
