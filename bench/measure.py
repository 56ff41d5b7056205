"""What is measured, each in one way: quartiles, peak memory, bytes saved for backward, FLOPs, straight lines."""

import ctypes
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from pgat_fast.plan.trace import MISSING_FORMULAS
from pgat_kernels.matmul_precision import fast_exact_float32
from pgat_kernels.ops.chunked_ops import bytes_kept

Quartiles = dict[str, float]
"""`quartile_1`, `median`, `quartile_3`."""


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles of at least one value."""
    found = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return dict(zip(("quartile_1", "median", "quartile_3"), found, strict=True))


# --- time -------------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait for what `device` has been told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], None], times: int, device: torch.device) -> list[float]:
    """The seconds that each of `times` calls takes, until the device has done what it was told."""
    found = []
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return found


# --- memory -----------------------------------------------------------------------------------------------------------


class PeakMemory:
    """The most memory that is held from now on: on CUDA the allocator's, elsewhere the resident size of the process.

    On Linux that is the kernel's `VmHWM`, which it can be told to forget (proc_pid_clear_refs(5)), elsewhere
    `ru_maxrss`. (On Linux that one is wrong for a child: it begins with the peak of the parent.) What cannot be
    forgotten is the baseline: then a peak below an earlier one is not seen.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.init()
        self.forget()
        self.baseline = self._peak()
        """Bytes that are held now."""

    def forget(self) -> None:
        """Start again from what is held now, where that is possible; the baseline stays."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _forget_peak()

    def reserved(self) -> int | None:
        """On CUDA the most bytes that the allocator has reserved, pools of CUDA graphs included; elsewhere None."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None

    def above_baseline(self) -> int:
        """Bytes of the peak above the baseline."""
        return self._peak() - self.baseline

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        found = _high_water_mark()
        if found is not None:
            return found
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    """Have `VmHWM` start again from what is resident now, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _high_water_mark() -> int | None:
    """Bytes: the peak resident size; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def give_back_freed() -> None:
    """Have Python and the C library of Linux let go of memory that is not used."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


# --- counts -----------------------------------------------------------------------------------------------------------


class SavedBytes:
    """Bytes that autograd keeps for the backward pass: of every storage once, the ignored ones left out."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        # Held, so that no other storage gets its address.
        self._storages: dict[int, torch.UntypedStorage] = {}

    @property
    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._ignored:
            self._storages[storage._cdata] = storage
        return tensor

    def forget(self) -> None:
        """Let go of the storages."""
        self._storages.clear()


@contextmanager
def count_saved(ignored: Iterable[Tensor] = ()) -> Iterator[SavedBytes]:
    """Within it, count what is saved for backward, but not `ignored`: parameters, buffers and inputs.

    What `torch.utils.checkpoint` and autograd functions keep to compute again is saved too, and counted; what is saved
    only while that runs is not. What a function keeps beside `save_for_backward` is not seen: of our operators see
    `bytes_kept`.
    """
    saved = SavedBytes(ignored)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        yield saved


class _Operators(TorchDispatchMode):
    """Notes the operators outside torch's own that have no formula for their FLOPs."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.without_formula: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        packet = getattr(func, "overloadpacket", func)
        if getattr(func, "namespace", "aten") not in ("aten", "prim", "prims") and packet not in flop_registry:
            self.without_formula.add(str(packet))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Counts:
    """Of one forward and backward pass.

    Attributes:
        saved_bytes: kept between the two, see `count_saved`, and what our operators keep.
        forward_flops, flops: of the forward pass, and of both; a multiplication and an addition are 2.
        without_formula: operators outside torch's own of whose FLOPs torch knows nothing. They counted as none.
    """

    saved_bytes: int
    forward_flops: int
    flops: int
    without_formula: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        return {
            "saved_for_backward_bytes": self.saved_bytes,
            "forward_flops": self.forward_flops,
            "flops": self.flops,
            "operators_without_flop_formula": list(self.without_formula),
        }


def count(forward: Callable[[], Tensor], ignored: Iterable[Tensor] = ()) -> Counts:
    """Count what `forward`, which returns a tensor, and the backward pass of its sum save and multiply.

    FLOPs are those of matrix products, convolutions and attention, by torch's formulas; what the backward pass
    computes again counts again. An operator of one's own counts by the formula that it has registered with
    `torch.utils.flop_counter.register_flop_formula`. Tensors may have no data, see `without_data`.
    """
    with FlopCounterMode(display=False, custom_mapping=dict(MISSING_FORMULAS)) as counter, _Operators() as operators:
        with count_saved(ignored) as saved:
            result = forward()
        saved_bytes, forward_flops = saved.total + bytes_kept(result), counter.get_total_flops()
        saved.forget()
        result.sum().backward()
        flops = counter.get_total_flops()
    return Counts(saved_bytes, forward_flops, flops, tuple(sorted(operators.without_formula)))


@contextmanager
def without_data() -> Iterator[None]:
    """Within it new tensors have shapes and storages, but no data, so that counting takes little time and memory."""
    with fast_exact_float32():  # it finds out what this processor does, once, and needs data for that
        pass
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def forget_data(module: nn.Module) -> None:
    """Within `without_data`, give `module` parameters and buffers that have none.

    A module is built outside of it: some read what they are given while they are built.
    """
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty_like(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty_like(buffer))


def state_of(module: nn.Module) -> list[Tensor]:
    """The parameters and buffers of `module`: they are there anyway, saved for backward or not."""
    return [*module.parameters(), *module.buffers()]


# --- lines ------------------------------------------------------------------------------------------------------------


def fit_line(sizes: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """The least-squares line through the origin, and, from three sizes on, the one with a constant.

    Args:
        sizes: positive.
        values: what they cost; at least one is positive.

    Returns:
        `slope`; `deviations_percent` of every value from the line, of the line; the `largest_deviation_percent`, with
        its sign; the same `with_constant`, and that constant.
    """
    products = sum(size * value for size, value in zip(sizes, values, strict=True))
    slope = products / sum(size**2 for size in sizes)
    line = {"slope": slope, **_deviations(values, [slope * size for size in sizes])}
    if len(sizes) > 2:
        slope, constant = statistics.linear_regression(sizes, values)
        deviations = _deviations(values, [constant + slope * size for size in sizes])
        line["with_constant"] = {"constant": constant, "slope": slope, **deviations}
    return line


def _deviations(values: Sequence[float], expected: Sequence[float]) -> dict[str, Any]:
    found = [100 * (value / line - 1) for value, line in zip(values, expected, strict=True)]
    return {"deviations_percent": found, "largest_deviation_percent": max(found, key=abs)}
