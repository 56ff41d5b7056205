"""One optimizer step: gradients of a few batches, clipped, and applied only if finite."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.model.compilation import Regions
from pgat_fast.model.precision import Precision, float32_products_in, products_in
from pgat_fast.training.loss import training_loss

if TYPE_CHECKING:
    from pgat_fast.config.schema import ModelConfig, TrainingConfig
    from pgat_fast.data.batch import Batch

SMALLEST_SCALE = 2.0**-12
"""A float16 loss scale below this means that gradients are not finite at any scale. It may well be below 1: divisions
by row sums near zero cause gradients of millions, and float16 ends at 65,504."""


def make_optimizer(model: nn.Module, settings: "TrainingConfig") -> torch.optim.Adam:
    """Return fused Adam, which takes one pass over each parameter and can skip a step without the host."""
    return torch.optim.Adam(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return a loss scaler that keeps float16 gradients from vanishing.

    It follows Micikevicius et al., Mixed Precision Training, 2018. It is disabled for other precisions, which have the
    range of float32.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@dataclass(eq=False)
class Totals:
    """Sums over an epoch, kept on the device to avoid synchronization: float64 scalars."""

    device: torch.device
    values: Tensor = field(init=False)
    """[loss of the counted batches, number of these batches, optimizer steps left out]"""

    def __post_init__(self) -> None:
        self.reset()

    def reset(self, values: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
        self.values = torch.tensor(values, dtype=torch.float64, device=self.device)

    def add(self, losses: Tensor, batches: int, finite: Tensor) -> None:
        """Count `batches` batches whose losses add up to `losses`; if not `finite`, count one step left out."""
        zero = torch.zeros_like(losses)
        increments = torch.stack((torch.where(finite, losses, zero), finite.double() * batches, (~finite).double()))
        # A new tensor each time, so that snapshots of the old one do not change.
        self.values = self.values + increments

    def mean_loss(self) -> float:
        """Return the mean loss of the counted batches; NaN if there are none. Waits for the device."""
        total, batches, _ = self.values.tolist()
        return total / batches if batches else math.nan

    def skipped_steps(self) -> int:
        """Return the number of optimizer steps left out. Waits for the device."""
        return int(self.values[2].item())


class Flags:
    """Flags that a device computes and the host reads after they have arrived, without waiting for a GPU."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, Any]] = deque()

    def push(self, flag: Tensor, context: Any) -> None:
        """Store `flag` (a bool scalar) and the `context` that it belongs to."""
        event = None
        if flag.is_cuda:
            flag = flag.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((flag, event, context))

    def raised(self, wait: bool = False) -> list[Any]:
        """Remove the flags that have arrived, or all with `wait`; return the contexts of the true ones."""
        contexts = []
        while self._pending:
            flag, event, context = self._pending[0]
            if event is not None:
                if wait:
                    event.synchronize()
                elif not event.query():
                    break
            self._pending.popleft()
            if flag:
                contexts.append(context)
        return contexts


class OptimizerStep:
    """Optimizer steps of `model`. Holds the model, the optimizer and the gradient scaler, but no data.

    A step whose loss or gradient norm is NaN or infinite changes neither weights nor optimizer state: the fused
    optimizer reads the flag on the device. The host reads it from `flags`: on a CPU at once, on a GPU as soon as it has
    arrived, without waiting. With `sticky`, every later step is left out too, until the host has reacted.

    Attributes:
        regions: compiled regions of the model.
        graphs: the model replays CUDA graphs, whose outputs the next replay overwrites, so gradients are summed in
            separate tensors.
        group: the ranks over which gradients are averaged; each computes its shard of every batch.
        trained: the model as wrapped by `group.wrap`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: "ModelConfig",
        settings: "TrainingConfig",
        precision: Precision,
        device: torch.device,
        *,
        regions: Regions = "none",
        graphs: bool = False,
        group: SingleProcess | None = None,
    ) -> None:
        self.group = group or SingleProcess()
        self.model, self.optimizer, self.settings = model, optimizer, settings
        self.trained = self.group.wrap(model)
        self.mixture_mode = config.mdn_multivariate_mode
        self.precision, self.device, self.regions, self.graphs = precision, device, regions, graphs
        self.scaler = make_scaler(precision, device)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.sticky = settings.nonfinite_steps == 0 and not self.scaler.is_enabled()
        self.flags = Flags()
        self.totals = Totals(device)
        self.norm = torch.zeros((), device=device)
        """Gradient norm of the last step, before clipping."""
        self._stuck = torch.zeros((), dtype=torch.bool, device=device)
        for parameter in self.parameters if graphs else ():
            parameter.grad = torch.zeros_like(parameter)

    def accumulate(self, batches: Sequence[Callable[[], "Batch"]], weight: float = 1.0) -> Tensor:
        """Set the gradients to those of the mean loss of `batches`; return the sum of their losses, a float64 scalar.

        The mean is over `batches`, since the last step of an epoch may have fewer. With several ranks, each computes
        its shard of every batch, whose mean loss is multiplied by `weight`; gradients and losses are means over ranks.
        """
        self.optimizer.zero_grad(set_to_none=not self.graphs)
        losses = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, load in enumerate(batches, 1):
            with self.group.backward(self.trained, average=number == len(batches)):
                loss = self.loss(load(), self.trained) * weight
                with float32_products_in(self.precision, self.device):
                    self.scaler.scale(loss / len(batches)).backward()
            losses += loss.detach()
        return self.group.all_reduce_sum(losses) / self.group.size

    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Set the gradients of `parameters`, in their order; with `graphs`, the tensors that graphs add to are kept."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if self.graphs and parameter.grad is not None and gradient is not None:
                parameter.grad.copy_(gradient)
            else:
                parameter.grad = gradient

    def loss(self, batch: "Batch", model: nn.Module | None = None) -> Tensor:
        """Return the training loss of one batch, a float32 scalar."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with products_in(self.precision, self.device):
            forecast, diagnostics = (model or self.model)(*batch[:4])
        return training_loss(forecast, diagnostics, batch.y, self.mixture_mode, self.settings.kl_weight)

    def apply(self, losses: Tensor, batches: int, context: Any = None) -> None:
        """Clip the gradients to `clip_grad_norm`, take the step and count it. The caller reads `flags` afterwards."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.norm = nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(self.norm) & torch.isfinite(losses)
        if self.settings.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip_grad_norm, self.norm)
        self._stuck = (self._stuck & self.sticky) | ~finite
        self.optimizer.found_inf = self._stuck.float()  # type: ignore[attr-defined]  # as GradScaler sets it
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()  # lowers the scale if `unscale_` found an infinity, raises it after many good steps
        self.totals.add(losses, batches, finite)
        self.flags.push(~finite, context)
