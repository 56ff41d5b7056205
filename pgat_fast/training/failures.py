"""Reports on failed steps: the source of a NaN, and the use of memory."""

import gc
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgat_fast.data.windows import Windows
from pgat_fast.model.compilation import eager, is_compiled
from pgat_fast.training.optimizer_step import OptimizerStep
from pgat_fast.training.rng import generator_states, restore_generators
from pgat_fast.utils.io import write_json

logger = logging.getLogger(__name__)

_SHOWN = 20


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
    step: OptimizerStep, windows: Windows, cycle: list[Tensor], dates: Any, generators: dict[str, Any]
) -> dict[str, Any]:
    """Compute the batches of a failed step again and report where the first non-finite value appears.

    The weights must be those before the step and `generators` the state at its start, so that it fails in the same
    place. Gradients and generators are left unchanged.
    """
    parameters = dict(step.model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    nonfinite_gradients = _not_finite(gradients)
    nonfinite_weights = _not_finite(parameters)
    batches = []
    generators_before = generator_states()
    restore_generators(generators)
    with torch.no_grad():
        for indices in cycle:
            batch = windows.batch(indices)
            with eager(step.model), _watched(step.model) as module_names:
                loss = step.loss(batch)
            inputs = [name for name, value in batch._asdict().items() if not value.isfinite().all()]
            value = loss.item()
            batches.append(
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
        "batches": batches,
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


def write_report(folder: Path, name: str, content: dict[str, Any]) -> Path:
    """Write `content` as JSON to `folder / name` and return that path. A failure is only logged."""
    path = folder / name
    try:
        write_json(path, content)
    except OSError as error:  # a full disk must not hide the reported error
        logger.error("%s cannot be written: %s", path, error)
    return path
