"""Measurements: quartiles, peak memory, bytes saved for backward, FLOPs, and the exponent of growth."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pgat_fast.monitoring.memory import process_memory
from pgat_fast.plan.trace import MISSING_FORMULAS
from pgat_fast.utils.system import GIB
from pgat_kernels.matmul_precision import fast_exact_float32
from pgat_kernels.ops.backward_memory import bytes_kept

# --- memory -----------------------------------------------------------------------------------------------------------


class PeakMemory:
    """Peak memory since creation: on CUDA the allocator's, elsewhere the resident size of the process.

    On Linux the resident peak can be reset (proc_pid_clear_refs(5)). Where it cannot, the earlier peak is the baseline,
    and a later peak below it is not detected.
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
            with suppress(OSError):  # not Linux, or not writable
                Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def reserved(self) -> int | None:
        """Return the peak bytes reserved by the CUDA allocator, including pools of CUDA graphs; elsewhere None."""
        return torch.cuda.max_memory_reserved(self._device) if self._device.type == "cuda" else None

    def above_baseline(self) -> int:
        """Return the peak above the baseline, in bytes."""
        return self._peak() - self.baseline

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return int(process_memory()[1] * GIB)


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


@dataclass(frozen=True)
class Counts:
    """Counts of one forward and backward pass.

    Attributes:
        saved_bytes: bytes kept between the two passes, see `count_saved`, including what our operators keep.
        forward_flops, flops: FLOPs of the forward pass, and of both; a multiplication and an addition count as 2.
    """

    saved_bytes: int
    forward_flops: int
    flops: int

    def record(self) -> dict[str, Any]:
        return {
            "saved_for_backward_bytes": self.saved_bytes,
            "forward_flops": self.forward_flops,
            "flops": self.flops,
        }


def count(forward: Callable[[], Tensor], ignored: Iterable[Tensor] = ()) -> Counts:
    """Count the saved bytes and FLOPs of `forward`, which returns a tensor, and of the backward pass of its sum.

    FLOPs are those of matrix products, convolutions and attention, by torch's formulas; recomputation in the backward
    pass counts again. A custom operator counts by the formula registered for it with
    `torch.utils.flop_counter.register_flop_formula`. Tensors may have no data, see `without_data`.
    """
    with FlopCounterMode(display=False, custom_mapping=dict(MISSING_FORMULAS)) as counter:
        with count_saved(ignored) as saved:
            result = forward()
        saved_bytes, forward_flops = saved.total + bytes_kept(result), counter.get_total_flops()
        saved.forget()
        result.sum().backward()
        flops = counter.get_total_flops()
    return Counts(saved_bytes, forward_flops, flops)


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


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Return the exponent of the best power law with a constant, by least squares of relative errors.

    Neither constant nor factor is negative. Returns None for fewer than three sizes.
    """
    if len(sizes) < 3:
        return None
    x, y = np.asarray(sizes, dtype=float) / max(sizes), np.asarray(values, dtype=float)
    best, least = None, np.inf
    for power in np.arange(0.1, 8.01, 0.05):
        columns = np.stack((np.ones_like(x), x**power), axis=1) / y[:, None]
        coefficients = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
        if coefficients[0] < 0:  # fit again without a constant
            coefficients = np.array([0.0, columns[:, 1].sum() / (columns[:, 1] ** 2).sum()])
        error = float(((columns @ coefficients - 1) ** 2).sum())
        if coefficients[1] > 0 and error < least:
            best, least = float(power), error
    return best
