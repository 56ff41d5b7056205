"""Random numbers of a block of code in one thread, from another generator than that of the process."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

_DRAWING: Final = frozenset(
    {
        *("uniform_", "normal_", "bernoulli_", "random_", "exponential_", "trunc_normal_", "orthogonal_"),
        *("kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_"),
        *("rand", "randn", "randint", "randperm", "bernoulli", "multinomial"),
    }
)
"""Functions of torch, of `torch.nn.init` and methods of tensors that accept a generator."""


class drawing_from(TorchFunctionMode):  # noqa: N801 - a context manager, as torch.no_grad
    """Context in which this thread draws random numbers on the CPU from `generator`, where torch accepts one.

    `torch.random.fork_rng` restores the generator of the process instead, and with it what other threads have drawn.
    Dropout accepts no generator: use this context to build models, not to call them.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if getattr(func, "__name__", "") in _DRAWING and named.get("generator") is None:
            named["generator"] = self._generator
        return func(*args, **named)
