"""Tests that the features in `torch_features` behave the same on all supported versions of torch."""

import gc
import warnings
import weakref
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from pgat_kernels.torch_features import (
    compile_apart,
    constant_when_compiled,
    has_autocast,
    skip_buffer_broadcast,
)

LIMITS = {"recompile_limit": 1, "accumulated_recompile_limit": 2}
SETTINGS = {"fullgraph": True, "dynamic": False, "backend": "eager"}


def scale(x: Tensor, *, by: float = 2.0) -> Tensor:
    """Return `by * x`; the function to be compiled."""
    return by * x


@torch._dynamo.config.patch(LIMITS)
def test_compilations_of_one_function_are_counted_separately() -> None:
    for width in range(1, 6):
        torch._dynamo.utils.counters.clear()
        assert compile_apart(scale, **SETTINGS)(torch.ones(width), by=3.0).tolist() == [3.0] * width
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch._dynamo.config.patch(LIMITS)
def test_compilations_of_modules_of_one_class_are_counted_separately() -> None:
    for width in range(1, 6):
        module = nn.Sequential(nn.Linear(width, 2), nn.ReLU())
        module._compiled_call_impl = compile_apart(module._call_impl, **SETTINGS)
        x = torch.ones(3, width)
        torch._dynamo.utils.counters.clear()
        compiled = module(x)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        torch.testing.assert_close(compiled, module._call_impl(x))


def test_compiled_module_is_freed_with_its_last_reference() -> None:
    module = nn.Linear(2, 2)
    module._compiled_call_impl = compile_apart(module._call_impl, **SETTINGS)
    module(torch.ones(1, 2))
    reference = weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None


def test_has_autocast_is_true_on_cpu_and_false_on_meta() -> None:
    def ask(x: Tensor) -> Tensor:
        return x + (10 * has_autocast(x.device.type) + has_autocast("meta"))

    assert ask(torch.zeros(2)).tolist() == [10.0, 10.0]
    assert torch.compile(ask, **SETTINGS)(torch.zeros(2)).tolist() == [10.0, 10.0]


def test_constant_when_compiled_sets_the_attribute_of_torch() -> None:
    def ours() -> int:
        return 1

    def of_torch() -> int:
        return 1

    assert vars(constant_when_compiled(ours)) == vars(torch.compiler.assume_constant_result(of_torch)) != {}


def test_skip_buffer_broadcast_disables_broadcast_without_warning(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(2)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapped = nn.parallel.DistributedDataParallel(module, **skip_buffer_broadcast())
        assert not wrapped.will_sync_module_buffers()
    finally:
        distributed.destroy_process_group()
