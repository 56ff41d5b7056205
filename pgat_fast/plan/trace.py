"""What one training step computes and holds, counted without computing it.

The model and its inputs are fake tensors: they have shapes, types and storages, but no data. A step runs on them,
backward pass and recomputation included, and every storage is followed from its birth to its death. Operators of our
own are followed inside, too: see `operators`. What they keep for the backward pass with `run.recompute` off or auto is
counted from one chunk. The model is that of the backend that will run, never compiled.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pgat_fast.config.schema import Config, ModelConfig
from pgat_fast.data.calendar import CELLS
from pgat_fast.data.windows import Batch
from pgat_fast.model import build_model
from pgat_fast.model.fast.pgat import FastPGAT
from pgat_fast.plan.operators import change_of_kept, formulas_of_kept, implementation, prepare
from pgat_fast.plan.stand_ins import cuda_operators, replace_recurrences
from pgat_fast.training.loss import training_loss
from pgat_kernels.chunks import few_chunks

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


class LiveBytes(TorchDispatchMode):
    """Follows the storages of the tensors that operators return: views of one storage count once, until it dies.

    Attributes:
        live, peak: bytes that live now, and at most.
        by_operators: what operators have kept, all together; counted as large, since no holes grow between it.
        peak_large: the most bytes that lived at once in storages of at least `LARGE` bytes; peak_small: in others.
    """

    def __init__(self, ignored: Iterable[Tensor] = (), device: str = "cpu", keep: int = 0) -> None:
        """Follow all but `ignored`, which must outlive this, with the temporaries that operators have on `device`.

        With `keep` each of our operators over rows counts as one that keeps as many bytes, see `Execution.keep`.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_cpu, self._keep = device == "cpu", keep
        self.live = self.peak = self.peak_small = self.peak_large = self.by_operators = 0
        self._small = 0
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
            self._change(storage.nbytes(), 1)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._change(self._sizes.pop(key), -1)

    def _touch(self, size: int) -> None:
        """Count what an operator holds only while it runs."""
        self._change(size, 1)
        self._change(size, -1)

    def _change(self, size: int, sign: int, *, small: bool | None = None) -> None:
        self.live += sign * size
        self._small += sign * size if (size < LARGE if small is None else small) else 0
        self.peak = max(self.peak, self.live)
        self.peak_small = max(self.peak_small, self._small)
        self.peak_large = max(self.peak_large, self.live - self._small)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
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
        inside = LiveBytes(tensors, "cpu" if self._on_cpu else "cuda")
        with torch.no_grad(), few_chunks(), inside:
            code(*args)
        kept = change_of_kept(func, args, self._keep)
        if kept > 0:
            self.by_operators += kept
            self._change(kept, 1, small=False)
        self.peak = max(self.peak, self.live + inside.peak)
        self.peak_small = max(self.peak_small, self._small + inside.peak_small)
        self.peak_large = max(self.peak_large, self.live - self._small + inside.peak_large)
        self.add(*tensors_in(result))
        if kept < 0:
            self._change(-kept, -1, small=False)
        return result


def tensors_in(result: Any) -> list[Tensor]:
    """The tensors of an operator's arguments or result."""
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
    """What operators keep instead of computing it again, a part of `kept`, `peak` and `peak_large`."""

    def computed_again(self) -> "Memory":
        """That of a micro-batch whose operators keep nothing."""
        own = self.by_operators
        return replace(
            self, kept=self.kept - own, peak=self.peak - own, peak_large=self.peak_large - own, by_operators=0
        )


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
        device: `cpu` or `cuda`: whose operators to count (`stand_ins.cuda_operators`). No GPU is used.
        backend: as `build_model` takes it.
    """
    with _without_data(config, backend, device) as (model, keep):
        return memory_of_step(model, example(config.model, batch), config, precision, device, keep)


def trace_flops(config: Config, batch: int, backend: str | None = None) -> Flops:
    """Count the FLOPs of one micro-batch of `batch` windows, with torch's formulas and those of our own operators.

    `backend`: as `build_model` takes it.
    """
    with _without_data(config, backend) as (model, keep):
        return flops_of_step(model, example(config.model, batch), config, keep)


@contextmanager
def _without_data(config: Config, backend: str | None, device: str = "cpu") -> Iterator[tuple[nn.Module, int]]:
    """Within it tensors have no data; yields the model, and the bytes that its operators keep at most.

    The model itself keeps nothing here: to follow each operation of each chunk would take minutes.
    """
    prepare()
    with FakeTensorMode(), cuda_operators() if device == "cuda" else nullcontext():
        model = build_model(config, backend).train()
        replace_recurrences(model)
        keep = 0
        if isinstance(model, FastPGAT):
            keep = model.execution.keep
            model.set_execution(replace(model.execution, keep=0))
        yield model, keep


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
        kept = live.live
        loss.backward()
    return Memory(len(batch.y), kept, live.peak, live.peak_small, live.peak_large, live.by_operators)


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


def example(model: ModelConfig, batch: int) -> Batch:
    """`batch` windows of random numbers with the shapes that `model` wants."""
    history, steps = model.seq_len, model.label_len + model.pred_len
    marks = len(CELLS) if model.freq == "t" else len(CELLS) - 1
    return Batch(
        x_enc=torch.randn(batch, history, model.enc_in),
        x_mark_enc=torch.rand(batch, history, marks),
        x_dec=torch.randn(batch, steps, model.dec_in),
        x_mark_dec=torch.rand(batch, steps, marks),
        y=torch.randn(batch, model.pred_len, model.c_out),
    )
