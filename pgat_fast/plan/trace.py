"""What one training step computes and holds, counted without computing it.

The model and its inputs are fake tensors: they have shapes, types and storages, but no data. A step runs on them,
backward pass and recomputation included, and every storage is followed from its birth to its death. Operators of our
own are followed inside, too: see `operators`. What they keep for the backward pass with `run.recompute` off or auto is
counted from one chunk. The model is that of the backend that will run, never compiled.
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
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pgat_fast.config.schema import Config
from pgat_fast.data.windows import Batch, example
from pgat_fast.model import build_model
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.plan.fake_cache import UncacheableError, describe, without_data
from pgat_fast.plan.fake_ops import cuda_operators, replace_recurrences
from pgat_fast.plan.operators import change_of_kept, formulas_of_kept, implementation, keep_at_most, prepare
from pgat_fast.training.loss import training_loss
from pgat_kernels.ops.chunked_ops import few_chunks

aten = torch.ops.aten

LARGE = 32 * 2**20
"""Bytes from which the C library of Linux (glibc) maps a block on its own, and gives it back when it is freed. Its
threshold grows to this as blocks are freed (`M_MMAP_THRESHOLD` in mallopt(3))."""


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
"""FLOPs that torch 2.13 does not count: fused attention on a CPU."""


class Peaks:
    """Bytes that live now, and at most.

    Attributes:
        live, peak: of all storages.
        peak_small, peak_large: the most that lived at once in storages below `LARGE` bytes, and in others.
    """

    def __init__(self) -> None:
        self.live = self.peak = self.peak_small = self.peak_large = self._small = 0

    def change(self, size: int, *, small: bool | None = None) -> None:
        """Count `size` bytes more, or less where it is negative; by default that says whether the storage is small."""
        self.live += size
        self._small += size if (abs(size) < LARGE if small is None else small) else 0
        self.peak = max(self.peak, self.live)
        self.peak_small = max(self.peak_small, self._small)
        self.peak_large = max(self.peak_large, self.live - self._small)

    def pass_by(self, inside: "Peaks") -> None:
        """Count what lived beside what lives now, and is gone."""
        self.peak = max(self.peak, self.live + inside.peak)
        self.peak_small = max(self.peak_small, self._small + inside.peak_small)
        self.peak_large = max(self.peak_large, self.live - self._small + inside.peak_large)


class LiveBytes(TorchDispatchMode):
    """Follows the storages of the tensors that operators return: views of one storage count once, until it dies.

    Attributes:
        all: with what operators keep, which counts as large, since no holes grow between it.
        again: without it, as if they kept nothing.
        by_operators: what operators have kept, all together.
    """

    def __init__(self, ignored: Iterable[Tensor] = (), device: str = "cpu", keep: int = 0) -> None:
        """Follow all but `ignored`, which must outlive this, with the temporaries that operators have on `device`.

        With `keep` each of our operators over rows counts as one that keeps as many bytes, see `Execution.keep`.
        """
        super().__init__()  # type: ignore[no-untyped-call]
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
        """Count what an operator holds only while it runs."""
        self._change(size)
        self._change(-size)

    def _change(self, size: int) -> None:
        self.all.change(size)
        self.again.change(size)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # asked for each tensor without data, a thousand times a step
            return args[0].device
        code = implementation(func)
        if code is not None:
            return self._run_own(func, code, args)
        result = func(*args, **(kwargs or {}))
        # On a CPU it converts the whole of a 16-bit tensor first: seen in the peak of the process.
        if func is torch.ops.aten.mean.dim and args[0].dtype.itemsize == 2 and self._on_cpu:
            self._touch(4 * args[0].numel())
        self.add(*tensors_in(result))
        return result

    def _run_own(self, func: Any, code: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Run an operator of our own, and count what is held inside of it. None of them has named arguments."""
        tensors = tensors_in(args)
        if not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with torch.no_grad(), self:
                return code(*args)
        result = func(*args)
        inside = self._peaks_inside(func, code, args, tensors)
        kept = change_of_kept(func, args, self._keep)
        if kept > 0:
            self.by_operators += kept
            self.all.change(kept, small=False)
        for peaks in (self.all, self.again):
            peaks.pass_by(inside)
        self.add(*tensors_in(result))
        if kept < 0:
            self.all.change(kept, small=False)
        return result

    def _peaks_inside(self, func: Any, code: Callable[..., Any], args: Sequence[Any], tensors: list[Tensor]) -> Peaks:
        """Return what is held inside of an operator of our own, which is followed once for equal arguments."""
        key = None
        with suppress(UncacheableError):
            storages = [tensor.untyped_storage()._cdata for tensor in tensors]
            shared = [storages.index(storage) for storage in storages]
            key = (func, torch.is_autocast_enabled("cpu"), *shared, *describe(args, []))
        if key is None or key not in self._inside:
            inside = LiveBytes(tensors, "cpu" if self._on_cpu else "cuda")
            with torch.no_grad(), few_chunks(), inside:
                code(*args)
            self._inside[key] = inside.all
        return self._inside[key]


def tensors_in(result: Any) -> list[Tensor]:
    """The tensors of an operator's arguments or result."""
    if isinstance(result, Tensor):
        return [result]
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Memory:
    """Bytes of one micro-batch (forward pass, loss, backward pass), beside parameters and optimizer state."""

    batch: int
    kept: int
    """What lives between the forward and the backward pass: inputs, activations."""
    peak: int
    """The most that lives at once: inputs, activations, gradients, temporaries."""
    peak_small: int
    peak_large: int
    """The same, of storages below `LARGE` bytes, and of the others; each at its own moment."""
    by_operators: int = 0
    """What operators keep instead of computing it again: a part of `kept`, and of the peaks as far as it lives then."""
    again: "Memory | None" = None
    """That of a micro-batch whose operators keep nothing, where they keep something."""


@dataclass(frozen=True)
class Flops:
    """Of the matrix products and convolutions of one micro-batch; a multiplication and an addition are 2."""

    forward: int
    step: int
    """Forward pass, recomputation and backward pass."""


def trace_memory(
    config: Config, batch: int, precision: torch.dtype | None = None, device: str = "cpu", backend: str | None = None
) -> Memory:
    """Count the bytes of one micro-batch of `batch` windows; takes a second or two, whatever the sizes.

    Args:
        config: the run; with `gradient_accumulation_steps` above 1 the gradients live from the beginning of the step.
        batch: B.
        precision: the type of products, None for float32, as `product_dtype` gives it.
        device: `cpu` or `cuda`: whose operators to count (`fake_ops.cuda_operators`). No GPU is used.
        backend: as `build_model` takes it.
    """
    with _model_without_data(config, backend, device) as (model, keep):
        return memory_of_step(model, example(config.model, batch), config, precision, device, keep)


def trace_flops(config: Config, batch: int, backend: str | None = None) -> Flops:
    """Count the FLOPs of one micro-batch of `batch` windows, with torch's formulas and those of our own operators.

    `backend`: as `build_model` takes it.
    """
    with _model_without_data(config, backend) as (model, keep):
        return flops_of_step(model, example(config.model, batch), config, keep)


@contextmanager
def _model_without_data(config: Config, backend: str | None, device: str = "cpu") -> Iterator[tuple[nn.Module, int]]:
    """Within it tensors have no data; yields the model, and the bytes that its operators keep at most.

    The model itself keeps nothing here: to follow each operation of each chunk would take minutes.
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
    """Count the bytes of a step of `model` on `batch`. With real tensors on the CPU it computes the step, too.

    `keep`: what its operators are to be counted with, see `LiveBytes`.
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
    """Count the FLOPs of a step of `model` on `batch`, real tensors or not; `keep` as in `memory_of_step`."""
    # A pass of its own: the counter keeps tensors alive that a step frees.
    with FlopCounterMode(display=False, custom_mapping={**MISSING_FORMULAS, **formulas_of_kept(keep)}) as counter:
        loss = _loss(model, batch, config, None)
        forward = counter.get_total_flops()
        loss.backward()
    return Flops(forward, counter.get_total_flops())


def _loss(model: nn.Module, batch: Batch, config: Config, precision: torch.dtype | None) -> Tensor:
    with torch.autocast("cpu", dtype=precision or torch.bfloat16, enabled=precision is not None):
        forecast, diagnostics = model(*batch[:4])
    mode = config.model.mdn_multivariate_mode
    return training_loss(forecast, diagnostics, batch.y, mode, config.training.kl_weight)
