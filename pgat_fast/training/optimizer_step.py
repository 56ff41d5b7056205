"""One optimizer step: gradients of a few batches, clipped, applied only if they are finite."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pgat_fast.config.schema import ModelConfig, TrainingConfig
from pgat_fast.data.windows import Batch
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.model.precision import Precision, float32_products_in, products_in
from pgat_fast.training.loss import training_loss

SMALLEST_SCALE = 2.0**-12
"""A float16 loss scale below this means that gradients are not finite at any scale. (It may well be below 1: divisions
by row sums near zero make gradients of millions, and float16 ends at 65,504.)"""


def make_optimizer(model: nn.Module, settings: TrainingConfig) -> torch.optim.Adam:
    """Adam in its fused form: one pass over each parameter, and it can leave a step out without asking the host."""
    return torch.optim.Adam(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that float16 gradients do not vanish (Micikevicius et al., Mixed Precision Training, 2018).

    Does nothing for other precisions, which have the range of float32.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@dataclass(eq=False)
class Totals:
    """What an epoch adds up, on the device, so that nothing waits for it: float64 scalars."""

    device: torch.device
    values: Tensor = field(init=False)
    """[loss of the batches that counted, number of them, optimizer steps left out]"""

    def __post_init__(self) -> None:
        self.reset()

    def reset(self, values: Sequence[float] = (0.0, 0.0, 0.0)) -> None:
        self.values = torch.tensor(values, dtype=torch.float64, device=self.device)

    def add(self, losses: Tensor, batches: int, finite: Tensor) -> None:
        """Count `batches` batches whose losses add up to `losses`, or one step left out where they are not finite."""
        zero = torch.zeros_like(losses)
        counted = torch.stack((torch.where(finite, losses, zero), finite.double() * batches, (~finite).double()))
        # A new tensor each time: a snapshot of the old one stays what it was.
        self.values = self.values + counted


class Flags:
    """Flags that a device computes, read by the host once they have arrived: it never waits for one on a GPU."""

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, Any]] = deque()

    def push(self, flag: Tensor, context: Any) -> None:
        """Remember `flag` (bool, a scalar), and what it is about."""
        event = None
        if flag.is_cuda:
            flag = flag.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((flag, event, context))

    def raised(self, wait: bool = False) -> list[Any]:
        """The contexts of the flags that have arrived and are true; with `wait`, of all."""
        found = []
        while self._pending:
            flag, event, context = self._pending[0]
            if event is not None:
                if wait:
                    event.synchronize()
                elif not event.query():
                    break
            self._pending.popleft()
            if flag:
                found.append(context)
        return found


class OptimizerStep:
    """Takes optimizer steps of `model`. What it holds is the model, the optimizer and the gradient scaler, no data.

    A step whose loss or gradient norm is NaN or infinite changes neither weights nor optimizer state: the fused
    optimizer reads the flag on the device. `flags` tells the host of it: on a CPU at once, on a GPU as soon as it has
    arrived, without waiting. With `sticky`, every later step is left out too, until the host has reacted.

    `graphs`: the model replays CUDA graphs, whose outputs the next replay overwrites. So gradients are added up in
    tensors of their own. `group`: the ranks over which gradients are averaged; each has its shard of every batch.
    `trained`: the model as wrapped by `group.wrap`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: ModelConfig,
        settings: TrainingConfig,
        precision: Precision,
        device: torch.device,
        *,
        graphs: bool = False,
        group: SingleProcess | None = None,
        trained: nn.Module | None = None,
    ) -> None:
        self.group = group or SingleProcess()
        self.model, self.optimizer, self.settings = model, optimizer, settings
        self.trained = trained or model
        self.mixture_mode = config.mdn_multivariate_mode
        self.precision, self.device, self.graphs = precision, device, graphs
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

    def accumulate(self, batches: Sequence[Callable[[], Batch]], weight: float = 1.0) -> Tensor:
        """Set the gradients to those of the mean loss of `batches`; returns the sum of their losses, a float64 scalar.

        The last cycle of an epoch may be shorter than the others: the mean is over what it holds. Of several ranks each
        has a share of every batch, whose mean counts `weight`; gradients and losses are those of all.
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
        """Set the gradients of `parameters`, in their order; with `graphs` the tensors that graphs add to are kept."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if self.graphs and parameter.grad is not None and gradient is not None:
                parameter.grad.copy_(gradient)
            else:
                parameter.grad = gradient

    def loss(self, batch: Batch, model: nn.Module | None = None) -> Tensor:
        """The training loss of one batch, a float32 scalar."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with products_in(self.precision, self.device):
            forecast, diagnostics = (model or self.model)(*batch[:4])
        return training_loss(forecast, diagnostics, batch.y, self.mixture_mode, self.settings.kl_weight)

    def apply(self, losses: Tensor, batches: int, context: Any = None) -> None:
        """Clip the gradients to `clip_grad_norm`, take the step, count it. The caller reads `flags` afterwards."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.norm = nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(self.norm) & torch.isfinite(losses)
        if self.settings.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip_grad_norm, self.norm)
        self._stuck = (self._stuck & self.sticky) | ~finite
        self.optimizer.found_inf = self._stuck.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()  # lowers the scale where `unscale_` met an infinity, raises it after many good steps
        self.totals.add(losses, batches, finite)
        self.flags.push(~finite, context)
