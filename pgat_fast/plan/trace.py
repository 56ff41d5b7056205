"""FLOPs and memory of a training step, counted without computing it.

The model and its inputs are fake tensors: they have shapes, dtypes and storages, but no data. A step runs on them,
including backward pass and recomputation, and every storage is tracked from allocation to release. Allocations inside
our custom operators are counted too: see `operators`. The memory that they keep for the backward pass with
`run.recompute` off or auto is counted from one chunk. The model is that of the run's backend, never compiled.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from pgat_fast.config.schema import Config
from pgat_fast.data.windows import Batch, example
from pgat_fast.model import build_model
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.plan.fake_cache import UncacheableError, describe, without_data
from pgat_fast.plan.fake_ops import cuda_operators, replace_recurrences
from pgat_fast.plan.operators import change_of_kept, formulas_of_kept, implementation, keep_at_most, prepare
from pgat_fast.training.loss import training_loss
from pgat_kernels.instrumentation import few_chunks
from pgat_kernels.ops.registration import FlopCounter

aten = torch.ops.aten

LARGE = 32 * 2**20
"""Bytes from which the C library of Linux (glibc) maps a block separately and returns it when it is freed. The
threshold grows to this value as blocks are freed (`M_MMAP_THRESHOLD` in mallopt(3))."""


def _attention_forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


MISSING_FORMULAS: Mapping[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""FLOP formulas missing in torch 2.13: fused attention on a CPU."""


class Peaks:
    """Counter of current and peak bytes.

    Attributes:
        live, peak: current and peak bytes of all storages.
        peak_small, peak_large: peak bytes of storages below `LARGE` bytes, and of the others.
    """

    def __init__(self) -> None:
        self.live = self.peak = self.peak_small = self.peak_large = self._small = 0

    def change(self, size: int, *, small: bool | None = None) -> None:
        """Add `size` bytes, which may be negative; by default `size` determines whether the storage is small."""
        self.live += size
        self._small += size if (abs(size) < LARGE if small is None else small) else 0
        self.peak = max(self.peak, self.live)
        self.peak_small = max(self.peak_small, self._small)
        self.peak_large = max(self.peak_large, self.live - self._small)

    def pass_by(self, inside: "Peaks") -> None:
        """Update the peaks for storages that existed besides the current ones and have been freed."""
        self.peak = max(self.peak, self.live + inside.peak)
        self.peak_small = max(self.peak_small, self._small + inside.peak_small)
        self.peak_large = max(self.peak_large, self.live - self._small + inside.peak_large)


class LiveBytes(TorchDispatchMode):
    """Mode that counts the storages of tensors returned by operators; each storage counts once, until it is freed.

    Attributes:
        all: bytes including those kept by operators, which count as large, since they do not fragment the heap.
        again: bytes without those, as if operators kept nothing.
        by_operators: bytes kept by all operators together.
    """

    def __init__(self, ignored: Iterable[Tensor] = (), device: str = "cpu", keep: int = 0) -> None:
        """
        Args:
            ignored: tensors that are not counted; they must outlive this object.
            device: `cpu` or `cuda`, whose temporaries in operators are counted.
            keep: bytes that each of our operators over rows is counted to keep; see `Execution.keep`.
        """
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self._on_cpu, self._keep = device == "cpu", keep
        self.all, self.again, self.by_operators = Peaks(), Peaks(), 0
        self._inside: dict[Any, Peaks] = {}
        self._sizes: dict[int, int] = {}
        self._ignored = {tensor.untyped_storage()._cdata for tensor in ignored}

    def add(self, *tensors: Tensor) -> None:
        """Count the storages of `tensors` that are not counted yet."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._sizes or key in self._ignored:
                continue
            self._sizes[key] = storage.nbytes()
            self._change(storage.nbytes())
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._change(-self._sizes.pop(key))

    def _touch(self, size: int) -> None:
        """Count a temporary of an operator."""
        self._change(size)
        self._change(-size)

    def _change(self, size: int) -> None:
        self.all.change(size)
        self.again.change(size)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # called for each fake tensor, a thousand times a step
            return args[0].device
        code = implementation(func)
        if code is not None:
            return self._run_own(func, code, args)
        result = func(*args, **(kwargs or {}))
        # On a CPU it first converts the whole 16-bit tensor to float32, as the peak of the process shows.
        if func is torch.ops.aten.mean.dim and args[0].dtype.itemsize == 2 and self._on_cpu:
            self._touch(4 * args[0].numel())
        self.add(*tensors_in(result))
        return result

    def _run_own(self, func: Any, code: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Run one of our custom operators, and count the memory inside it. None of them has keyword arguments."""
        tensors = tensors_in(args)
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with torch.no_grad(), self:
                return code(*args)
        result = func(*args)
        inner_peaks = self._peaks_inside(func, code, args, tensors)
        kept = change_of_kept(func, args, self._keep)
        if kept > 0:
            self.by_operators += kept
            self.all.change(kept, small=False)
        for peaks in (self.all, self.again):
            peaks.pass_by(inner_peaks)
        self.add(*tensors_in(result))
        if kept < 0:
            self.all.change(kept, small=False)
        return result

    def _peaks_inside(self, func: Any, code: Callable[..., Any], args: Sequence[Any], tensors: list[Tensor]) -> Peaks:
        """Return the peaks inside one of our custom operators; cached for equal arguments."""
        key = None
        with suppress(UncacheableError):
            storages = [tensor.untyped_storage()._cdata for tensor in tensors]
            shared = [storages.index(storage) for storage in storages]
            key = (func, torch.is_autocast_enabled("cpu"), *shared, *describe(args, []))
        if key is None or key not in self._inside:
            live = LiveBytes(tensors, "cpu" if self._on_cpu else "cuda")
            with torch.no_grad(), few_chunks(), live:
                code(*args)
            self._inside[key] = live.all
        return self._inside[key]


def tensors_in(result: Any) -> list[Tensor]:
    """Return the tensors in an operator's arguments or result."""
    if isinstance(result, Tensor):
        return [result]
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Memory:
    """Bytes of one micro-batch (forward pass, loss, backward pass), without parameters and optimizer state."""

    batch: int
    kept: int
    """Bytes between the forward and the backward pass: inputs, activations."""
    peak: int
    """Peak bytes: inputs, activations, gradients, temporaries."""
    peak_small: int
    peak_large: int
    """Peaks of storages below `LARGE` bytes, and of the others; they may occur at different times."""
    by_operators: int = 0
    """Bytes that operators keep instead of recomputing: part of `kept`, and of a peak as far as they exist then."""
    again: "Memory | None" = None
    """Memory of a micro-batch whose operators keep nothing; None if they keep nothing anyway."""


@dataclass(frozen=True)
class Flops:
    """FLOPs of matrix products and convolutions of one micro-batch; a multiplication and an addition are 2."""

    forward: int
    step: int
    """Forward pass, recomputation and backward pass."""


def trace_memory(
    config: Config, batch: int, precision: torch.dtype | None = None, device: str = "cpu", backend: str | None = None
) -> Memory:
    """Count the bytes of one micro-batch of `batch` windows, in one or two seconds for any size.

    Args:
        config: the run; with `gradient_accumulation_steps` above 1 the gradients exist from the start of the step.
        batch: B.
        precision: the dtype of products as returned by `product_dtype`, None for float32.
        device: `cpu` or `cuda`, whose operators are counted (`fake_ops.cuda_operators`). No GPU is used.
        backend: a backend as accepted by `build_model`.
    """
    with _model_without_data(config, backend, device) as (model, keep):
        return memory_of_step(model, example(config.model, batch), config, precision, device, keep)


def trace_flops(config: Config, batch: int, backend: str | None = None) -> Flops:
    """Count the FLOPs of one micro-batch of `batch` windows, with torch's formulas and those of our custom operators.

    `backend`: a backend as accepted by `build_model`.
    """
    with _model_without_data(config, backend) as (model, keep):
        return flops_of_step(model, example(config.model, batch), config, keep)


@contextmanager
def _model_without_data(config: Config, backend: str | None, device: str = "cpu") -> Iterator[tuple[nn.Module, int]]:
    """Yield a model on fake tensors, and the bytes that its operators keep at most.

    The operators of this model keep nothing: tracing every operation of every chunk would take minutes.
    """
    prepare()
    with without_data(), cuda_operators() if device == "cuda" else nullcontext():
        model = build_model(config, backend).train()
        replace_recurrences(model)
        if isinstance(model, FastPGAT):
            model.set_execution(replace(model.execution, keep=0))
        yield model, keep_at_most(config, device) if isinstance(model, FastPGAT) else 0


def memory_of_step(
    model: nn.Module,
    batch: Batch,
    config: Config,
    precision: torch.dtype | None = None,
    device: str = "cpu",
    keep: int = 0,
) -> Memory:
    """Count the bytes of a step of `model` on `batch`; real tensors on the CPU are computed as well.

    `keep`: bytes that its operators are counted to keep; see `LiveBytes`.
    """
    parameters = list(model.parameters())
    if config.training.gradient_accumulation_steps > 1:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
    live = LiveBytes(parameters, device, keep)
    live.add(*batch, *(parameter.grad for parameter in parameters if parameter.grad is not None))
    with live:
        loss = _loss(model, batch, config, precision)
        kept, kept_again = live.all.live, live.again.live
        loss.backward()

    def memory(kept: int, peaks: Peaks, by_operators: int = 0, again: Memory | None = None) -> Memory:
        return Memory(len(batch.y), kept, peaks.peak, peaks.peak_small, peaks.peak_large, by_operators, again)

    again = memory(kept_again, live.again) if live.by_operators > 0 else None
    return memory(kept, live.all, live.by_operators, again)


def flops_of_step(model: nn.Module, batch: Batch, config: Config, keep: int = 0) -> Flops:
    """Count the FLOPs of a step of `model` on `batch`, of real or fake tensors; `keep` as in `memory_of_step`."""
    # A separate pass: the counter keeps tensors alive that a step would free.
    with FlopCounter({**MISSING_FORMULAS, **formulas_of_kept(keep)}) as counter:
        loss = _loss(model, batch, config, None)
        forward = counter.get_total_flops()
        loss.backward()
    return Flops(forward, counter.get_total_flops())


def _loss(model: nn.Module, batch: Batch, config: Config, precision: torch.dtype | None) -> Tensor:
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        forecast, diagnostics = model(*batch[:4])
    mode = config.model.mdn_multivariate_mode
    return training_loss(forecast, diagnostics, batch.y, mode, config.training.kl_weight)
