"""Measurements: quartiles, peak memory, bytes saved for backward, FLOPs, and straight-line fits."""

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
from pgat_kernels.ops.kept import bytes_kept

Quartiles = dict[str, float]
"""Keys `quartile_1`, `median`, `quartile_3`."""


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of at least one value."""
    cut_points = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return dict(zip(("quartile_1", "median", "quartile_3"), cut_points, strict=True))


# --- time -------------------------------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], None], times: int, device: torch.device) -> list[float]:
    """Return the seconds of each of `times` calls of `run`, until `device` has finished its work."""
    seconds = []
    for _ in range(times):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds


# --- memory -----------------------------------------------------------------------------------------------------------


class PeakMemory:
    """Peak memory since creation: on CUDA the allocator's, elsewhere the resident size of the process.

    On Linux the resident peak is the kernel's `VmHWM`, which can be reset (proc_pid_clear_refs(5)), elsewhere
    `ru_maxrss`. (On Linux `ru_maxrss` is wrong for a child: it starts at the peak of the parent.) Where the peak cannot
    be reset, the earlier peak is the baseline, and a later peak below it is not detected.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.init()
        self.forget()
        self.baseline = self._peak()
        """Peak at creation, in bytes; where it can be reset, the memory held then."""

    def forget(self) -> None:
        """Reset the peak to the memory held now, where that is possible; the baseline is unchanged."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            _forget_peak()

    def reserved(self) -> int | None:
        """Return the peak bytes reserved by the CUDA allocator, including pools of CUDA graphs; elsewhere None."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None

    def above_baseline(self) -> int:
        """Return the peak above the baseline, in bytes."""
        return self._peak() - self.baseline

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        high_water_mark = _high_water_mark()
        if high_water_mark is not None:
            return high_water_mark
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    """Reset `VmHWM` to the current resident size, where the system supports it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _high_water_mark() -> int | None:
    """Return the peak resident size in bytes; None where the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def give_back_freed() -> None:
    """Collect garbage, and make the C library of Linux return unused memory to the system."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


# --- counts -----------------------------------------------------------------------------------------------------------


class SavedBytes:
    """Bytes that autograd keeps for the backward pass; each storage counts once, ignored ones do not count."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}
        # Keep the storages alive, so that no other storage gets their address.
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
        """Release the storages."""
        self._storages.clear()


@contextmanager
def count_saved(ignored: Iterable[Tensor] = ()) -> Iterator[SavedBytes]:
    """Count what is saved for backward within the context, except `ignored`: parameters, buffers and inputs.

    What `torch.utils.checkpoint` and autograd functions keep for recomputation is saved too, and counted; what is saved
    only during the recomputation is not. What a function keeps other than by `save_for_backward` is not counted: for
    our operators see `bytes_kept`.
    """
    saved = SavedBytes(ignored)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        yield saved


class _Operators(TorchDispatchMode):
    """Mode that collects the operators outside torch's own that have no formula for their FLOPs."""

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
    """Counts of one forward and backward pass.

    Attributes:
        saved_bytes: bytes kept between the two passes, see `count_saved`, including what our operators keep.
        forward_flops, flops: FLOPs of the forward pass, and of both; a multiplication and an addition count as 2.
        without_formula: operators outside torch's own for which torch has no FLOP formula; they count as 0 FLOPs.
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
    """Count the saved bytes and FLOPs of `forward`, which returns a tensor, and of the backward pass of its sum.

    FLOPs are those of matrix products, convolutions and attention, by torch's formulas; recomputation in the backward
    pass counts again. A custom operator counts by the formula registered for it with
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
    """Create tensors with shapes and storages but no data within the context: counting takes little time and memory."""
    with fast_exact_float32():  # its one-time check of the processor needs data
        pass
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def forget_data(module: nn.Module) -> None:
    """Replace the parameters and buffers of `module` by ones without data; call it within `without_data`.

    Build the module outside of that context: some modules read tensors during construction.
    """
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty_like(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty_like(buffer))


def state_of(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of `module`, which are held whether saved for backward or not."""
    return [*module.parameters(), *module.buffers()]


# --- lines ------------------------------------------------------------------------------------------------------------


def fit_line(sizes: Sequence[float], values: Sequence[float]) -> dict[str, Any]:
    """Fit the least-squares line through the origin, and, for three sizes or more, the one with a constant.

    Args:
        sizes: positive sizes.
        values: their costs, at least one of which is positive.

    Returns:
        `slope`; `deviations_percent` of every value from the line, in percent of the line; the
        `largest_deviation_percent`, with its sign; and `with_constant`, the same for the line with a constant, and the
        `constant`.
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
    deviations = [100 * (value / line - 1) for value, line in zip(values, expected, strict=True)]
    return {"deviations_percent": deviations, "largest_deviation_percent": max(deviations, key=abs)}
