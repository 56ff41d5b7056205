"""Comparison of the first compiled training step with an eager one, since a compiler can be wrong without an error.

For example, Inductor of torch 2.13.0 computes gradients of embedding tables with errors larger than the gradients if a
batch is one window and the whole model is compiled. The check costs one eager step per process. Only if the gradients
differ by more than float rounding usually causes are three more eager steps taken, with weights and inputs moved by one
unit in the last place: the change of the gradients is what rounding can explain (`pgat_kernels.conditioning`).
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from pgat_fast.data.windows import Batch
from pgat_fast.errors import first_line
from pgat_fast.model.compilation import Regions, compiled_regions_of, eager, undo_compilation
from pgat_fast.model.compile_cache import cache_folder
from pgat_fast.model.precision import product_dtype
from pgat_fast.monitoring.jsonl_logger import to_plain
from pgat_fast.training.failures import is_out_of_memory
from pgat_fast.training.optimizer_step import OptimizerStep
from pgat_fast.training.rng import generator_states, restore_generators
from pgat_kernels.conditioning import SPREADS, moved_by_rounding, relative_errors

logger = logging.getLogger(__name__)

USUAL: Final[dict[torch.dtype, float]] = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
"""Dtype of the products -> relative error of a gradient up to which no further check is made.

Compiled and eager gradients of the production models differ by at most 2e-4 in float32; the error of a wrong program is
as large as the gradient. In between, the conditioning of the case decides: twice `SPREADS` spreads are allowed beyond
this, since both programs round.
"""
DRAWS: Final = 3
"""Number of eager steps with moved weights and inputs."""
MOST_NAMES: Final = 10
"""Largest number of parameters that a message names."""


@dataclass(frozen=True)
class CompileCheck:
    """Result of the comparison.

    Attributes:
        regions: compiled regions.
        fault: reason why the compiled step cannot be used; None if it can.
        losses: sum of losses returned by `OptimizerStep.accumulate` for the gradients that the step has now.
        worst_error: largest relative error of a parameter's gradient, compiled against eager; None if nothing could be
            compared because the compiler failed or the eager gradients are not finite.
        bound: error that was allowed for that parameter.
        parameter: name of that parameter.
        wrong: names of all parameters beyond their bound.
        eager_seconds, compiled_seconds: durations of the two steps; the compiled one includes compilation.
    """

    regions: Regions
    fault: str | None
    losses: Tensor
    worst_error: float | None
    bound: float | None
    parameter: str | None
    wrong: list[str]
    eager_seconds: float
    compiled_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON, without the losses and with at most `MOST_NAMES` wrong parameters.

        Values that JSON cannot represent, such as an infinite error, become None.
        """
        values = {name: value for name, value in vars(self).items() if name != "losses"}
        plain: dict[str, Any] = to_plain(values | {"wrong": self.wrong[:MOST_NAMES]})
        return plain

    @property
    def undecided(self) -> bool:
        """Whether the eager gradients were not finite, so that another step must be compared."""
        return self.fault is None and self.worst_error is None

    def text(self) -> str:
        """Return a summary in one line."""
        if self.fault is not None:
            return f"compiled training ({self.regions}) cannot be used: {self.fault}"
        if self.undecided:
            return "the gradients of the eager step are not finite, so compiled ones are compared in the next step"
        return (
            f"compiled in {self.compiled_seconds:.0f} s; gradients are those of an eager step "
            f"({self.eager_seconds:.1f} s) up to {self.worst_error:.1e} ({self.parameter}; {self.bound:.1e} is allowed)"
        )


def check_compiled_step(
    step: OptimizerStep, batches: Sequence[Callable[[], Batch]], weight: float, check_stop: Callable[[], None]
) -> CompileCheck:
    """Compute the gradients of a step eagerly and compiled, with the same random state, and compare them.

    Args:
        step: its model is compiled; compilation is undone if there is a fault. Afterwards, its gradients are those of
            the compiled step, or of the eager one if there is a fault or nothing could be compared.
        batches, weight: see `OptimizerStep.accumulate`.
        check_stop: raises if the run was asked to stop; called when the compiler fails, since an interrupt from a
            terminal also reaches the C++ compiler.
    """
    regions = compiled_regions_of(step.model)
    names = [name for name, parameter in step.model.named_parameters() if parameter.requires_grad]
    generators_before = generator_states()
    started = time.monotonic()
    with eager(step.model):
        eager_losses = step.accumulate(batches, weight)
    expected = _copies(step)
    eager_seconds = time.monotonic() - started
    generators_after = generator_states()

    def go_on_eagerly(
        fault: str | None, wrong: Sequence[str] = (), error: float | None = None, bound: float | None = None
    ) -> CompileCheck:
        """Continue as if the step had been eager from the start."""
        if fault is not None:
            undo_compilation(step.model)
        step.set_gradients(expected)
        restore_generators(generators_after)
        return CompileCheck(
            regions=regions,
            fault=fault,
            losses=eager_losses,
            worst_error=error,
            bound=bound,
            parameter=wrong[0] if wrong else None,
            wrong=list(wrong),
            eager_seconds=eager_seconds,
            compiled_seconds=time.monotonic() - started - eager_seconds,
        )

    restore_generators(generators_before)
    try:
        losses = step.accumulate(batches, weight)
    except Exception as error:
        if is_out_of_memory(error) or step.group.size > 1:
            raise
        _wait_for_stop(check_stop)
        logger.debug("compiling failed", exc_info=error)
        return go_on_eagerly(
            f"torch could not compile it ({type(error).__name__}: {first_line(error)[:300]}); compiled code is kept in "
            f"{cache_folder()}: delete that folder if this comes again"
        )
    compiled_seconds = time.monotonic() - started - eager_seconds
    if _any(step, (not gradient.isfinite().all() for gradient in _or_zeros(step, expected))):
        return go_on_eagerly(None)
    dtype = product_dtype(step.precision) or torch.float32
    errors = relative_errors(_gradients(step), _or_zeros(step, expected))
    bounds = [USUAL[dtype]] * len(errors)
    if _any(step, (error > bound for error, bound in zip(errors, bounds, strict=True))):
        compiled_gradients = _copies(step)
        spread = _spread(step, batches, weight, expected, generators_before, dtype)
        bounds = [USUAL[dtype] + 2 * SPREADS * moved for moved in spread]
        step.set_gradients(compiled_gradients)
        restore_generators(generators_after)
    excess = [error / bound if error < math.inf else math.inf for error, bound in zip(errors, bounds, strict=True)]
    order = sorted(range(len(errors)), key=excess.__getitem__, reverse=True)
    wrong = [k for k in order if excess[k] > 1]
    worst = order[0]
    if _any(step, [bool(wrong)]):
        descriptions = [f"{names[k]} by {errors[k]:.2g} ({bounds[k]:.2g} allowed)" for k in wrong[:MOST_NAMES]]
        if len(wrong) > MOST_NAMES:
            descriptions.append(f"and {len(wrong) - MOST_NAMES} more")
        differences = ", ".join(descriptions) or "in another rank"
        fault = f"its gradients differ from those of an eager step: {differences}"
        return go_on_eagerly(fault, [names[k] for k in wrong], errors[worst], bounds[worst])
    return CompileCheck(
        regions=regions,
        fault=None,
        losses=losses,
        worst_error=errors[worst],
        bound=bounds[worst],
        parameter=names[worst],
        wrong=[],
        eager_seconds=eager_seconds,
        compiled_seconds=compiled_seconds,
    )


def _spread(
    step: OptimizerStep,
    batches: Sequence[Callable[[], Batch]],
    weight: float,
    expected: list[Tensor | None],
    generators: dict[str, Any],
    dtype: torch.dtype,
) -> list[float]:
    """Return how far eager gradients move if rounding in `dtype` moves weights and inputs: the worst of `DRAWS`."""
    rng = torch.Generator().manual_seed(0)
    originals = [parameter.detach().clone() for parameter in step.parameters]
    reference = _or_zeros(step, expected)
    worst = [0.0] * len(originals)

    def moved(x: Tensor) -> Tensor:
        return moved_by_rounding(x.to(dtype), rng).to(x.dtype)

    def move(load: Callable[[], Batch]) -> Batch:
        batch = load()
        # Calendar marks stay: they are read as integers, which a unit in the last place can change.
        return batch._replace(x_enc=moved(batch.x_enc), x_dec=moved(batch.x_dec))

    try:
        for _ in range(DRAWS):
            with torch.no_grad():
                for parameter, original in zip(step.parameters, originals, strict=True):
                    parameter.copy_(moved(original))
            restore_generators(generators)
            with eager(step.model):
                step.accumulate([partial(move, load) for load in batches], weight)
            worst = [max(pair) for pair in zip(worst, relative_errors(_gradients(step), reference), strict=True)]
    finally:
        with torch.no_grad():
            for parameter, original in zip(step.parameters, originals, strict=True):
                parameter.copy_(original)
    return worst


def _copies(step: OptimizerStep) -> list[Tensor | None]:
    return [None if parameter.grad is None else parameter.grad.detach().clone() for parameter in step.parameters]


def _gradients(step: OptimizerStep) -> list[Tensor]:
    """Return the gradients, with zeros for missing ones: compiled code returns zeros where autograd returns None."""
    return _or_zeros(step, [parameter.grad for parameter in step.parameters])


def _or_zeros(step: OptimizerStep, gradients: Sequence[Tensor | None]) -> list[Tensor]:
    return [
        torch.zeros_like(parameter) if gradient is None else gradient.detach()
        for parameter, gradient in zip(step.parameters, gradients, strict=True)
    ]


def _any(step: OptimizerStep, flags: Iterable[bool]) -> bool:
    """Return whether a flag is set on any rank."""
    return any(step.group.all_gather(any(flags)))


def _wait_for_stop(check_stop: Callable[[], None]) -> None:
    """Give a signal that ended the C++ compiler time to reach this process; raise what `check_stop` raises."""
    for _ in range(20):
        check_stop()
        time.sleep(0.1)
