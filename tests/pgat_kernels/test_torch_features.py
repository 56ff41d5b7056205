"""What the supported versions of torch do differently behaves alike on each of them."""

import gc
import weakref

import torch
from torch import Tensor, nn

from pgat_kernels.torch_features import compile_apart

LIMITS = {"recompile_limit": 1, "accumulated_recompile_limit": 2}
SETTINGS = {"fullgraph": True, "dynamic": False, "backend": "eager"}


def scale(x: Tensor, *, by: float = 2.0) -> Tensor:
    """What is compiled."""
    return by * x


@torch._dynamo.config.patch(LIMITS)
def test_compilations_of_one_function_are_counted_apart() -> None:
    for width in range(1, 6):
        torch._dynamo.utils.counters.clear()
        assert compile_apart(scale, **SETTINGS)(torch.ones(width), by=3.0).tolist() == [3.0] * width
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch._dynamo.config.patch(LIMITS)
def test_compilations_of_modules_of_one_class_are_counted_apart() -> None:
    for width in range(1, 6):
        module = nn.Sequential(nn.Linear(width, 2), nn.ReLU())
        module._compiled_call_impl = compile_apart(module._call_impl, **SETTINGS)
        x = torch.ones(3, width)
        torch._dynamo.utils.counters.clear()
        compiled = module(x)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        torch.testing.assert_close(compiled, module._call_impl(x))


def test_a_compiled_module_is_freed_with_its_last_reference() -> None:
    module = nn.Linear(2, 2)
    module._compiled_call_impl = compile_apart(module._call_impl, **SETTINGS)
    module(torch.ones(1, 2))
    known = weakref.ref(module)
    del module
    gc.collect()
    assert known() is None
