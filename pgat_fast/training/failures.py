"""Failures of a run: the source of a NaN, the use of memory, and what is saved and reported before the run ends."""

import gc
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgat_fast import exit_codes
from pgat_fast.data.windows import Windows
from pgat_fast.errors import (
    MemoryLimitError,
    OutOfMemoryError,
    PgatError,
    RankError,
    StopRequested,
    TrainingError,
    first_line,
)
from pgat_fast.model.compilation import eager, is_compiled
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.monitoring.memory import release_caches
from pgat_fast.training.checkpoint_saver import CheckpointSaver, Snapshot
from pgat_fast.training.optimizer_step import SMALLEST_SCALE, OptimizerStep
from pgat_fast.training.rng import generator_states, restore_generators
from pgat_fast.training.run_folder import read_status
from pgat_fast.training.stopping import Control
from pgat_fast.utils.io import write_json

logger = logging.getLogger(__name__)

_SHOWN = 20

Dates = NDArray[np.datetime64]


class FailureHandler:
    """Reaction to failures of a run: a report, a checkpoint if possible, and an error that names the remedy."""

    def __init__(
        self,
        step: OptimizerStep,
        windows: Windows,
        dates: Dates,
        control: Control,
        saver: CheckpointSaver,
    ) -> None:
        """Store the parts of the run; `dates` are those of the rows of the whole table."""
        self.step, self.windows, self.dates, self.control, self.saver = step, windows, dates, control, saver
        self.reporter = saver.reporter
        self.state = self.reporter.state

    def check_gradients(self, wait: bool = False) -> None:
        """Handle the steps with non-finite gradients whose flags have arrived; with `wait`, wait for all flags.

        Raises TrainingError for a step that may not be left out.
        """
        for snapshot, batches in self.step.flags.raised(wait):
            scaler = self.step.scaler
            if scaler.is_enabled() and (scale := scaler.get_scale()) > SMALLEST_SCALE:
                logger.info("a float16 gradient overflowed: this step is skipped, and the loss scale is now %g", scale)
                continue
            self._report_nonfinite(snapshot, batches)

    def _report_nonfinite(self, snapshot: Snapshot, batches: list[Tensor]) -> None:
        """Report where a non-finite value came from; raise TrainingError unless the step may be left out."""
        progress, settings = snapshot.progress, self.step.settings
        location = f"epoch {progress.epoch + 1}, step {progress.epoch_steps + 1}"
        shards = [self.control.group.shard(indices) for indices in batches]
        report = find_nonfinite(self.step, self.windows, shards, self.dates, snapshot.generators)
        report = {"epoch": progress.epoch + 1, "step": progress.step + 1} | report
        path = self._write_report("nonfinite", progress.step + 1, report)
        skipped = int(snapshot.totals[2].item()) + sum(epoch.skipped_steps for epoch in progress.epochs)
        losses = ", ".join(f"{batch['loss']}" for batch in report["batches"])
        message = f"{location}: the gradient is not finite (losses {losses}); diagnosis in {path}"
        self.reporter.record("error", level="error", error=message, report=path.name)
        if skipped < settings.nonfinite_steps:
            logger.warning("%s; this step is skipped (training.nonfinite_steps)", message)
            return
        if self.step.sticky:  # otherwise a GPU may already have applied later steps
            self.saver.snapshot = snapshot
        raise self.control.on_all_ranks(
            TrainingError(
                f"{message}; the weights are those before this step. Lower training.learning_rate or "
                "training.clip_grad_norm, or check the data with `pgat-fast data check`"
            )
        )

    def end_run(self, error: BaseException) -> NoReturn:
        """Save a checkpoint if possible, record the reason, and raise the error to report."""
        if is_out_of_memory(error) and not isinstance(error, PgatError):
            error = self._out_of_memory(error)
        if isinstance(error, RankError) and not self.reporter.group.is_main:
            error = self._reason_of_main(error)
        stop_requested = isinstance(error, StopRequested | KeyboardInterrupt)
        state = "stopped" if stop_requested or isinstance(error, MemoryLimitError) else "failed"
        reason = f"{type(error).__name__}: {error}"
        if stop_requested or isinstance(error, OutOfMemoryError):
            reason = str(error) or "interrupted"
        self.reporter.record("stop" if state == "stopped" else "error", level="error", memory=True, reason=reason)
        self.saver.emergency_save()
        self.reporter.write_status(state, reason=reason, exit_code=exit_codes.of_error(error))
        self.control.wait_for_ranks()
        raise error

    def _reason_of_main(self, error: RankError) -> RankError:
        """Return `error`, with the exit code of the first rank if its status file shows that it ended the run."""
        status = read_status(self.reporter.folder)
        code = status.get("exit_code")
        if status.get("state") not in ("stopped", "failed") or not isinstance(code, int):
            return error
        return RankError(f"rank 0 has ended the run: {status.get('reason')}", exit_code=code)

    def _out_of_memory(self, error: BaseException) -> OutOfMemoryError:
        """Release the memory of the failed step, write a report, and return the error to raise."""
        text = first_line(error)
        error.__traceback__ = None  # its frames hold the tensors of the failed step
        report = memory_report(self.step.device, self.reporter.monitor.reading(), text)
        self.step.optimizer.zero_grad()
        release_caches()
        step, location = self.state.progress.step, self.state.stage
        path = self._write_report("out-of-memory", step, report)
        if location == "train":
            location += f", epoch {self.reporter.epoch}, step {step + 1}"
        return OutOfMemoryError(f"out of memory in {location}: {text}; report in {path}. {self._memory_advice()}")

    def _memory_advice(self) -> str:
        """Return advice on how to use less memory."""
        if self.state.stage != "train":
            return (
                "Evaluation computes one window at a time: lower model.seq_len or the size of the model, or free "
                "memory, and continue with --resume"
            )
        model, settings = self.step.model, self.step.settings
        keeps = isinstance(model, FastPGAT) and model.execution.keep > 0
        recompute = "Set run.recompute=on. " if keeps and self.step.regions != "whole" else ""
        return (
            f"{recompute}Lower training.batch_size from {settings.batch_size} (raise "
            f"training.gradient_accumulation_steps from {settings.gradient_accumulation_steps}, for the same optimizer "
            "step), or model.seq_len; `pgat-fast plan` predicts what fits"
        )

    def _write_report(self, what: str, step: int, content: dict[str, Any]) -> Path:
        """Write a report as JSON to the run folder and return its path; every rank writes its own.

        A failure is only logged.
        """
        path = self.reporter.folder / f"{what}-step-{step:08d}{self.control.group.suffix}.json"
        try:
            write_json(path, content)
        except OSError as error:  # a full disk must not hide the reported error
            logger.error("%s cannot be written: %s", path, error)
        return path


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` means that memory ran out. torch raises different classes for GPU and CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    # oneDNN does not report its status: a primitive that it chose but cannot create failed for lack of memory.
    if isinstance(error, RuntimeError) and text.startswith("could not create a primitive"):
        return not text.startswith("could not create a primitive descriptor")
    return isinstance(error, RuntimeError) and any(
        phrase in text for phrase in ("can't allocate memory", "not enough memory", "CUDA out of memory")
    )


def memory_report(device: torch.device, reading: dict[str, Any], error: str) -> dict[str, Any]:
    """Return the use of memory when it ran out: the last reading and, on CUDA, the summary of the allocator.

    The number of tensors is None if there is not enough memory to count them.
    """
    try:
        tensors = sum(issubclass(type(item), Tensor) for item in gc.get_objects())
    except MemoryError:
        tensors = None
    report = {"error": error, "reading": reading, "tensors": tensors}
    if device.type == "cuda":
        report["allocator"] = torch.cuda.memory_summary(device)
    return report


def find_nonfinite(
    step: OptimizerStep,
    windows: Windows,
    batches: list[Tensor],
    dates: Dates,
    generators: dict[str, Any],
) -> dict[str, Any]:
    """Compute the batches of a failed step again and report where the first non-finite value appears.

    The weights must be those before the step and `generators` the state at its start, so that it fails in the same
    place. Gradients and generators are left unchanged.
    """
    parameters = dict(step.model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    nonfinite_gradients = _not_finite(gradients)
    nonfinite_weights = _not_finite(parameters)
    reports = []
    generators_before = generator_states()
    restore_generators(generators)
    with torch.no_grad():
        for indices in batches:
            batch = windows.batch(indices)
            with eager(step.model), _watched(step.model) as module_names:
                loss = step.loss(batch)
            inputs = [name for name, value in batch._asdict().items() if not value.isfinite().all()]
            value = loss.item()
            reports.append(
                {
                    "windows": indices.tolist(),
                    "origins": [str(dates[windows.first_row + i + windows.seq_len - 1]) for i in indices.tolist()],
                    "loss": value if math.isfinite(value) else str(value),
                    "inputs_not_finite": inputs,
                    "first_module_not_finite": module_names[0] if module_names else None,
                }
            )
    restore_generators(generators_before)
    norm = step.norm.item()
    return {
        "gradient_norm": norm if math.isfinite(norm) else str(norm),
        "gradients_not_finite": {"count": len(nonfinite_gradients), "first": nonfinite_gradients[:_SHOWN]},
        "weights_not_finite": {"count": len(nonfinite_weights), "first": nonfinite_weights[:_SHOWN]},
        "learning_rate": step.optimizer.param_groups[0]["lr"],
        "loss_scale": step.scaler.get_scale() if step.scaler.is_enabled() else None,
        "precision": step.precision,
        "compiled": is_compiled(step.model),
        "batches": reports,
    }


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that contain NaN or infinite values."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that gets the name of the first module whose inputs are finite and whose output is not."""
    module_names: list[str] = []

    def look(name: str, inputs: tuple[Any, ...], outputs: Any) -> None:
        if not module_names and _finite(inputs) and not _finite(outputs):
            module_names.append(name or "the model itself")

    hooks = [
        module.register_forward_hook(lambda _, inputs, outputs, name=name: look(name, inputs, outputs))
        for name, module in model.named_modules()
    ]
    try:
        yield module_names
    finally:
        for hook in hooks:
            hook.remove()


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        value = list(value.values())
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True
