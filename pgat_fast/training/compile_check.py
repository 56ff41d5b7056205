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
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from pgat_fast.data.windows import Batch
from pgat_fast.errors import BackendError, first_line
from pgat_fast.model.compilation import Regions, compiled_regions_of, eager, undo_compilation
from pgat_fast.model.compile_cache import CompileCache, cache_advice
from pgat_fast.model.precision import product_dtype
from pgat_fast.monitoring.jsonl_logger import to_plain
from pgat_fast.training.failures import is_out_of_memory
from pgat_fast.training.optimizer_step import OptimizerStep
from pgat_fast.training.reporter import Reporter
from pgat_fast.training.rng import generator_states, restore_generators
from pgat_fast.training.stopping import Control
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


@dataclass(eq=False)
class CompileCheck:
    """Result of the comparison."""

    regions: Regions
    """Compiled regions."""
    losses: Tensor
    """Sum of losses returned by `OptimizerStep.accumulate` for the gradients that the step has now."""
    eager_seconds: float
    """Duration of the eager step."""
    compiled_seconds: float = 0.0
    """Duration of the compiled step, with compilation."""
    fault: str | None = None
    """Reason why the compiled step cannot be used; None if it can."""
    worst_error: float | None = None
    """Largest relative error of a parameter's gradient, compiled against eager; None if nothing could be compared
    because the compiler failed or the eager gradients are not finite."""
    bound: float | None = None
    """Error that was allowed for that parameter."""
    parameter: str | None = None
    """Name of that parameter."""
    wrong: list[str] = field(default_factory=list)
    """Names of all parameters beyond their bound."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON, without the losses and with at most `MOST_NAMES` wrong parameters.

        Values that JSON cannot represent, such as an infinite error, become None.
        """
        values = {name: value for name, value in vars(self).items() if name != "losses"}
        return to_plain(values | {"wrong": self.wrong[:MOST_NAMES]})

    @property
    def undecided(self) -> bool:
        """Whether the eager gradients were not finite, so that another step must be compared."""
        return self.fault is None and self.worst_error is None

    def text(self) -> str:
        """Return a summary in one line."""
        if self.fault is not None:
            return f"compiled training ({self.regions}) cannot be used: {self.fault}"
        if self.undecided:
            return "the gradients of the eager step are not finite: the comparison is repeated in the next step"
        return (
            f"compiled in {self.compiled_seconds:.0f} s; gradients agree with those of an eager step "
            f"({self.eager_seconds:.1f} s) within {self.worst_error:.1e} ({self.parameter}; allowed: {self.bound:.1e})"
        )


class CompileChecker:
    """Gradients of compiled training, compared with eager ones until one comparison has succeeded in this process.

    Attributes:
        pending: whether the next step is compared: the first compiled step of this process, and those after it until
            the eager gradients are finite.
        result: the last comparison as plain JSON; None before it.
    """

    def __init__(
        self,
        step: OptimizerStep,
        control: Control,
        reporter: Reporter,
        requested: str,
        cache: CompileCache | None,
        program: str,
    ) -> None:
        """Store the parts of the run.

        Args:
            step: its model may be compiled.
            control, reporter: of the run.
            requested: `run.compile`; only `auto` continues without compilation if it fails.
            cache: cache of compiled code, which is completed after a comparison that succeeded.
            program: key of the compiled code in the cache.
        """
        self.step, self.control, self.reporter = step, control, reporter
        self.requested, self.cache, self.program = requested, cache, program
        self.pending = step.regions != "none"
        self.result: dict[str, Any] | None = None
        self._seconds = 0.0

    def accumulate(self, batches: Sequence[Callable[[], Batch]], weight: float) -> Tensor:
        """Accumulate gradients as `OptimizerStep.accumulate` does, and compare them if a comparison is pending.

        If compilation fails or the gradients differ, `run.compile=auto` continues eagerly with the eager gradients;
        for `on` and `whole`, this raises BackendError.
        """
        if not self.pending:
            return self.step.accumulate(batches, weight)
        check = check_compiled_step(self.step, batches, weight, self.control.stop.check)
        # The compiled step is taken in addition to the eager one, so all of it is the cost of compilation.
        self._seconds = max(self._seconds, check.compiled_seconds)
        self.pending, self.result = check.undecided, check.to_dict()
        self.reporter.record("compilation", level="info" if check.fault is None else "error", **self.result)
        if check.fault is None:
            logger.info("%s", check.text())
            if self.cache is not None and not check.undecided:
                self.cache.record()
                self.cache.note_seconds(self.program, self._seconds)
        elif self.requested == "auto":
            logger.warning("%s; training continues without compilation", check.text())
            self.step.regions = "none"
        else:
            raise self.control.on_all_ranks(
                BackendError(
                    f"{check.text()}. Set run.compile=off, or auto, which continues without compilation; another "
                    "version of torch may compile it correctly (`pgat-fast info` shows the installed version)"
                )
            )
        return check.losses


Plain = Callable[[nn.Module], AbstractContextManager[None]]
"""Context in which a model computes in the way that another one is compared with."""


def check_compiled_step(
    step: OptimizerStep,
    batches: Sequence[Callable[[], Batch]],
    weight: float,
    check_stop: Callable[[], None],
    plain: Plain = eager,
) -> CompileCheck:
    """Compute the gradients of a step eagerly and compiled, with the same random state, and compare them.

    With another `plain`, what is compared with the step of the model is the step within that context.

    Args:
        step: its model is compiled; compilation is undone if there is a fault. Afterwards, its gradients are those of
            the compiled step, or of the eager one if there is a fault or nothing could be compared.
        batches, weight: see `OptimizerStep.accumulate`.
        check_stop: raises if the run was asked to stop; called when the compiler fails, since an interrupt from a
            terminal also reaches the C++ compiler.
        plain: context of the step that is compared with.
    """
    generators_before, started = generator_states(), time.monotonic()
    with plain(step.model):
        eager_losses = step.accumulate(batches, weight)
    expected, generators_after = _copies(step), generator_states()
    check = CompileCheck(compiled_regions_of(step.model), eager_losses, time.monotonic() - started)
    restore_generators(generators_before)
    try:
        compiled_losses = step.accumulate(batches, weight)
    except Exception as error:
        if is_out_of_memory(error) or step.group.lockstep:
            raise
        _wait_for_stop(check_stop)
        logger.debug("compiling failed", exc_info=error)
        message = f"({type(error).__name__}: {first_line(error)[:300]})"
        compiling = f"torch could not compile it {message}; {cache_advice()}"
        check.fault = compiling if plain is eager else f"they failed {message}"
    check.compiled_seconds = time.monotonic() - started - check.eager_seconds
    reference = _or_zeros(step, expected)
    if check.fault is None and not _any(step, (not gradient.isfinite().all() for gradient in reference)):
        errors = relative_errors(_gradients(step), reference)
        bounds = _bounds(step, batches, weight, errors, reference, generators_before, plain)
        restore_generators(generators_after)
        _compare(check, step, errors, bounds)
        if check.fault is None:
            check.losses = compiled_losses
            return check
    if check.fault is not None:
        undo_compilation(step.model)
    step.set_gradients(expected)
    restore_generators(generators_after)
    return check


def _compare(check: CompileCheck, step: OptimizerStep, errors: list[float], bounds: list[float]) -> None:
    """Store in `check` the worst of the `errors` of all parameters, and a fault if one is beyond its bound."""
    names = [name for name, parameter in step.model.named_parameters() if parameter.requires_grad]
    excess = [error / bound if error < math.inf else math.inf for error, bound in zip(errors, bounds, strict=True)]
    order = sorted(range(len(errors)), key=excess.__getitem__, reverse=True)
    wrong = [k for k in order if excess[k] > 1]
    worst = order[0]
    check.worst_error, check.bound, check.parameter = errors[worst], bounds[worst], names[worst]
    check.wrong = [names[k] for k in wrong]
    if _any(step, [bool(wrong)]):
        descriptions = [f"{names[k]} by {errors[k]:.2g} ({bounds[k]:.2g} allowed)" for k in wrong[:MOST_NAMES]]
        if len(wrong) > MOST_NAMES:
            descriptions.append(f"and {len(wrong) - MOST_NAMES} more")
        differences = ", ".join(descriptions) or "on another rank"
        check.fault = f"its gradients differ from those of an eager step: {differences}"


def _bounds(
    step: OptimizerStep,
    batches: Sequence[Callable[[], Batch]],
    weight: float,
    errors: list[float],
    reference: list[Tensor],
    generators: dict[str, Any],
    plain: Plain,
) -> list[float]:
    """Return the allowed relative error of each parameter's gradient: the usual one if no error exceeds it.

    Otherwise it also depends on how far eager gradients move if rounding moves weights and inputs: the worst of
    `DRAWS`. Gradients and weights are left unchanged.
    """
    dtype = product_dtype(step.precision) or torch.float32
    if not _any(step, (error > USUAL[dtype] for error in errors)):
        return [USUAL[dtype]] * len(errors)
    rng = torch.Generator().manual_seed(0)
    compiled_gradients = _copies(step)
    originals = [parameter.detach().clone() for parameter in step.parameters]
    worst = [0.0] * len(originals)

    def moved(x: Tensor) -> Tensor:
        return moved_by_rounding(x.to(dtype), rng).to(x.dtype)

    def move(load: Callable[[], Batch]) -> Batch:
        batch = load()
        # Calendar marks stay: they are read as integers, which a unit in the last place can change.
        return batch._replace(x_enc=moved(batch.x_enc), x_dec=moved(batch.x_dec))

    def set_weights(values: Iterable[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(step.parameters, values, strict=True):
                parameter.copy_(value)

    try:
        for _ in range(DRAWS):
            set_weights(map(moved, originals))
            restore_generators(generators)
            with plain(step.model):
                step.accumulate([partial(move, load) for load in batches], weight)
            worst = [max(pair) for pair in zip(worst, relative_errors(_gradients(step), reference), strict=True)]
    finally:
        set_weights(originals)
    step.set_gradients(compiled_gradients)
    return [USUAL[dtype] + 2 * SPREADS * change for change in worst]


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
