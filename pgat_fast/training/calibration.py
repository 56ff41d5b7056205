"""Choice of the kernels for a run with the backend `auto`, by whole training steps on this GPU where that pays.

The table of the package says which kernels should be faster. Where a line of it is modelled, or there is none, a run
that takes long first takes steps in turns: in plain torch, with the listed kernels, and with all. What was fastest is
kept in the user's cache, by GPU, model, batch, precision and versions. Before kernels that were not calibrated are
used, the gradients of one step are compared with those in plain torch, as for compiled code (`compile_check`).

The steps run eagerly, without CUDA graphs, which both ways of computing would gain from.
"""

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock
from torch import nn

from pgat_fast import __version__
from pgat_fast.config import Config
from pgat_fast.data.batch import Batch, example
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.model.compilation import expected_batch_seconds
from pgat_fast.model.compile_cache import user_cache
from pgat_fast.model.execution import Execution
from pgat_fast.model.kernel_choice import KernelChoice, described, in_words, kept_choice, listed_choice, why_not
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.model.precision import Precision
from pgat_fast.monitoring.memory import release_caches
from pgat_fast.training.compile_check import check_compiled_step
from pgat_fast.training.estimate import seconds_in_turns
from pgat_fast.training.failures import is_out_of_memory
from pgat_fast.training.optimizer_step import OptimizerStep, make_optimizer
from pgat_fast.training.rng import generator_states, restore_generators
from pgat_fast.training.state import most_steps
from pgat_fast.utils.io import write_json
from pgat_fast.utils.system import package_version
from pgat_kernels.dispatch import Kernels, gpu_of
from pgat_kernels.tuning_table import listed

logger = logging.getLogger(__name__)

CALIBRATION_SECONDS: Final = 30.0
"""Seconds for which steps are taken in turns, after the first step of each kind, which compiles its kernels."""
LONG_RUN: Final = 20 * CALIBRATION_SECONDS
"""Expected seconds of a run from which it calibrates itself: a twentieth of it."""
FILE: Final = "kernels.json"
"""Name of the file of kept results, in the user's cache."""


def choose_kernels(
    config: Config,
    device: torch.device,
    precision: Precision,
    windows: int,
    *,
    group: SingleProcess,
    resumed: str | None = None,
    check_stop: Callable[[], None] = lambda: None,
) -> KernelChoice:
    """Return the kernels of a run with the backend `auto`. Collective.

    A resumed run keeps its choice. Several ranks must choose alike, so they use the table alone. Otherwise a kept
    result decides. Without one, a long run calibrates itself unless the whole table was measured on this GPU, and
    others use the table.

    Args:
        config: of the run.
        device: of this rank.
        precision: of the products.
        windows: number of training windows.
        group: the ranks that train together.
        resumed: what the run that is resumed uses, as `kernel_summary` describes it.
        check_stop: raises if the run was asked to stop.

    Raises BackendError if the table of the package is invalid.
    """
    choice = why_not(device)
    if choice is None and resumed is not None:
        choice = kept_choice(resumed, device)
    elif choice is None and group.lockstep:
        choice = listed_choice(device)
    elif choice is None:
        kept = read_kept().get(key_of(config, device, precision))
        if kept is not None:
            return _choice_of_kept(kept)
        choice = listed_choice(device)
        entry = listed(gpu_of(device))
        seconds = config.training.gradient_accumulation_steps * expected_batch_seconds(config, device)
        expected = most_steps(config.training, windows, seconds) * seconds
        if expected >= LONG_RUN and (entry is None or entry.source != "measured"):
            return calibrate(config, device, precision, check_stop=check_stop)
    fault = None
    if choice.kernels != Kernels.OFF:
        windows_of_rank = -(-config.training.batch_size // group.size)
        with _trial(config, device, precision, choice.kernels, windows_of_rank) as trial:
            fault = trial.fault(check_stop)
    choices, faults = zip(*group.all_gather((choice.kernels, fault)), strict=True)
    if any(faults):
        return KernelChoice(Kernels.OFF, f"no kernels: {next(filter(None, faults))}", logging.WARNING)
    if len(set(choices)) > 1:
        return KernelChoice(Kernels.OFF, "no kernels: the GPUs of the ranks would use different ones", logging.WARNING)
    return choice


def calibrate(
    config: Config,
    device: torch.device,
    precision: Precision,
    seconds: float = CALIBRATION_SECONDS,
    *,
    check_stop: Callable[[], None] = lambda: None,
) -> KernelChoice:
    """Take training steps in turns with every choice of kernels, keep the fastest in the user's cache, and return it.

    Torch's generators are restored. Kernels whose gradients differ from those in plain torch by more than rounding
    explains, or which fail, are not timed.

    Args:
        config: of the run.
        device: one on which kernels run.
        precision: of the products.
        seconds: for which steps are taken in turns.
        check_stop: raises if the run was asked to stop.
    """
    logger.info("backend auto: finding out which kernels are faster here takes about %.0f s", seconds)
    choices = [Kernels.OFF, Kernels.ON]
    if listed_choice(device).kernels == Kernels.LISTED:
        choices.insert(1, Kernels.LISTED)
    faults: dict[Kernels, str] = {}
    steps: dict[Kernels, Callable[[], None]] = {}
    with _trial(config, device, precision, Kernels.OFF, config.training.batch_size) as trial:
        for kernels in choices:
            trial.use(kernels)
            fault = trial.fault(check_stop) if kernels else trial.shortage()
            if fault is None:
                steps[kernels] = partial(trial.step_with, kernels)
            else:
                faults[kernels] = fault
        times = seconds_in_turns(steps, seconds, device, check_stop)
    medians = {kernels: statistics.median(values) for kernels, values in times.items()}
    chosen = min(medians, key=medians.__getitem__, default=Kernels.OFF)
    result = {
        "kernels": described(chosen),
        "step_seconds": {described(kernels).partition(" ")[0]: median for kernels, median in medians.items()},
        "faults": {described(kernels).partition(" ")[0]: fault for kernels, fault in faults.items()},
        "date": time.strftime("%Y-%m-%d"),
    }
    file = keep(key_of(config, device, precision), result)
    choice = _choice_of_kept(result)
    where = "" if file is None else f"; kept in {file}"
    level = logging.WARNING if faults.get(Kernels.ON) or faults.get(Kernels.LISTED) else logging.INFO
    return replace(choice, reason=f"{choice.reason}{where}", level=level)


def _choice_of_kept(result: Mapping[str, Any]) -> KernelChoice:
    """Return the choice of a calibration, with its times as the reason."""
    word = result["kernels"].partition(" ")[0]
    kernels = {"none": Kernels.OFF, "listed": Kernels.LISTED}.get(word, Kernels.ON)
    names = {"none": "without kernels", "listed": "with the listed ones", "all": "with all"}
    times = ", ".join(f"{names[name]} {1e3 * seconds:.3g} ms" for name, seconds in result["step_seconds"].items())
    faults = "".join(f"; {names[name]}: {fault}" for name, fault in result["faults"].items())
    reason = f"{in_words(kernels)}, by a calibration of {result['date']}: a step takes {times or 'no time'}{faults}"
    return KernelChoice(kernels, reason)


# --- a trial step -----------------------------------------------------------------------------------------------------


class Trial:
    """A model of its own with the settings of a run, and a batch of random numbers, to take steps without effect."""

    def __init__(self, config: Config, device: torch.device, precision: Precision, windows: int) -> None:
        self.model = model = FastPGAT(config.model, Execution.of(config.run)).to(device)
        optimizer = make_optimizer(model, config.training)
        self._step = OptimizerStep(model, optimizer, config.model, config.training, precision, device)
        self._batch = Batch(*(x.to(device) for x in example(config.model, windows)))

    def use(self, kernels: Kernels) -> None:
        """Compute with these kernels from now on."""
        self.model.set_execution(replace(self.model.execution, kernels=kernels))

    def step_with(self, kernels: Kernels) -> None:
        """Compute the gradients of a batch with these kernels."""
        self.use(kernels)
        self._step.accumulate([lambda: self._batch])

    def shortage(self) -> str | None:
        """Take a step, and return that memory ran out; None if it did not."""
        try:
            self._step.accumulate([lambda: self._batch])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return "a step runs out of memory"
        return None

    def fault(self, check_stop: Callable[[], None]) -> str | None:
        """Compare a step with one in plain torch; return why these kernels cannot be used, None if they can.

        Where a step in plain torch does not fit into the memory, nothing is compared.
        """
        try:
            check = check_compiled_step(self._step, [lambda: self._batch], 1.0, check_stop, plain=without_kernels)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            check = None
        if check is None:  # outside of `except`: the error holds the tensors of the step
            self.model.zero_grad(set_to_none=True)
            release_caches()
            return self.shortage()
        if check.undecided:
            return "the gradients of a step in plain torch are not finite, so that nothing can be compared"
        if check.worst_error is None:
            return check.fault
        if check.fault is None:
            return None
        return (
            f"with them the gradient of {check.parameter} differs from that in plain torch by {check.worst_error:.2g} "
            f"({check.bound:.2g} allowed)"
        )


@contextmanager
def _trial(
    config: Config, device: torch.device, precision: Precision, kernels: Kernels, windows: int
) -> Iterator[Trial]:
    """Yield a trial with these kernels and batches of `windows`; restore the generators afterwards."""
    states = generator_states()
    try:
        trial = Trial(config, device, precision, windows)
        trial.use(kernels)
        yield trial
    finally:
        restore_generators(states)


@contextmanager
def without_kernels(model: nn.Module) -> Iterator[None]:
    """Compute `model` in plain torch within the context."""
    assert isinstance(model, FastPGAT)
    execution = model.execution
    model.set_execution(replace(execution, kernels=Kernels.OFF))
    try:
        yield
    finally:
        model.set_execution(execution)


# --- kept results -----------------------------------------------------------------------------------------------------


def key_of(config: Config, device: torch.device, precision: Precision) -> str:
    """Return the key of a kept result: GPU, precision, versions, and a hash of all that decides the shapes."""
    run = config.run.model_dump(mode="json")
    options = ("combiner_chunk", "recompute", "exact_dropout", "deterministic")
    shape = {
        "model": config.model.model_dump(mode="json"),
        "batch": config.training.batch_size,
        "run": {name: run[name] for name in options},
        "table": described(Kernels.LISTED),
    }
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    versions = f"pgat_fast {__version__}, torch {torch.__version__}, triton {package_version('triton')}"
    return f"{gpu}, {precision}, {versions}, {digest}"


def kept_file() -> Path:
    """Return the file of kept results in the user's cache. Raises OSError if the user has no home folder."""
    return user_cache() / "pgat_fast" / FILE


def read_kept() -> dict[str, dict[str, Any]]:
    """Return the kept results by their keys; none from a file that is missing, unreadable or damaged."""
    try:
        results = json.loads(kept_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: result for key, result in results.items() if _is_valid(result)} if isinstance(results, dict) else {}


def _is_valid(result: Any) -> bool:
    """Return whether `result` is one that `calibrate` keeps."""
    try:
        return _choice_of_kept(result).reason is not None
    except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError):
        return False


def keep(key: str, result: dict[str, Any]) -> Path | None:
    """Add a result to the kept ones, and return their file; None, which is logged, if it cannot be written."""
    try:
        file = kept_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # runs of a sweep may calibrate at the same time
            write_json(file, read_kept() | {key: result})
    except OSError as error:
        logger.warning("the calibration cannot be kept (%s): the next run repeats it", error)
        return None
    return file
