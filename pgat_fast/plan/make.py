"""Construction of the plan of a run."""

import shutil
import time
from dataclasses import replace
from functools import cache
from math import ceil, prod
from pathlib import Path

import psutil
import torch

from pgat_fast.config import Config
from pgat_fast.data.bodies import BODIES
from pgat_fast.data.load import load_splits
from pgat_fast.data.windows import batch_indices
from pgat_fast.model import resolve_backend
from pgat_fast.model.execution import KEEPING_OPERATORS
from pgat_fast.model.precision import Precision, product_dtype, resolve_precision
from pgat_fast.model.reference.pgat import PGAT
from pgat_fast.monitoring.memory import NEAR
from pgat_fast.original_layout import original_shapes
from pgat_fast.plan.fake_cache import without_data
from pgat_fast.plan.figures import Computation, Disk, Limit, Needed, Parameters, Plan, Work
from pgat_fast.plan.memory import ADAM_TENSORS, largest_batch, line_through, process_bytes, tensor_bytes
from pgat_fast.plan.operators import keep_at_most
from pgat_fast.plan.trace import Memory, trace_flops, trace_memory
from pgat_fast.utils.device import device_exists, resolve_device
from pgat_fast.utils.system import GIB, container_memory_limit

FLOAT32 = 4
_SECOND = 4
"""Batch size that is counted besides the configured one, for linear extrapolation."""
_WEIGHTS_EXTRA, _TRAINING_EXTRA, _CHECKPOINT_EXTRA = 107, 480, 30_000
"""Bytes of a checkpoint besides its numbers: for each parameter in model.safetensors, for each in training.safetensors,
and for everything else (configuration, scalers, generators). Measured."""


def make_plan(config: Config, backend: str | None = None) -> Plan:
    """Predict the resources of the run that `config` describes, with the operators of its backend, without running it.

    Takes some seconds. Tensors are counted for the eager model; the memory that `torch.compile` may add to a process on
    a CPU is a constant, added unless `run.compile` is off. A configured GPU that is absent is planned for, with a
    warning. Random number generators do not change.

    Raises:
        BackendError: `backend` (default: that of the configuration) is unknown or cannot run here.
        DataError, ConfigError: the data file exists, but is invalid, does not fit the configuration or has too few
            windows for a batch.
    """
    started = time.perf_counter()
    resolved = resolve_backend(backend or config.run.backend)
    device, present = _device(config.run.device)
    precision = _precision(config.run.precision, device, present)
    settings = config.training

    parameters, tensors = count_parameters(config)
    work = count_work(config)
    flops = trace_flops(config, settings.batch_size, resolved)
    step = flops.step * settings.gradient_accumulation_steps
    batches = None if work is None else work.steps / work.steps_per_epoch * work.batches_per_epoch
    memory = _memory(config, resolved, device, present, precision, parameters, work)
    disk = _disk(config, parameters.count, tensors)
    plan = Plan(
        backend=resolved,
        device=str(device),
        device_present=present,
        precision=str(precision or torch.float32).removeprefix("torch."),
        batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        parameters=parameters,
        work=work,
        data=config.data.path,
        computation=Computation(
            flops.forward, flops.step, step, None if batches is None else round(flops.step * batches)
        ),
        memory=memory,
        disk=disk,
        warnings=(),
        seconds=0.0,
    )
    return replace(plan, warnings=tuple(_warnings(plan)), seconds=time.perf_counter() - started)


def count_parameters(config: Config) -> tuple[Parameters, int]:
    """Count the parameters of the model and their tensors; the counts are the same for all backends."""
    with without_data():
        model = PGAT(config.model)
        sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    original = sum(prod(shape) for shape in original_shapes(config.model).values())
    parameter_bytes = FLOAT32 * sum(sizes)
    return Parameters(sum(sizes), original, parameter_bytes, parameter_bytes, ADAM_TENSORS * parameter_bytes), len(
        sizes
    )


def count_work(config: Config) -> Work | None:
    """Count windows, batches and steps of the run; None if the data file does not exist. Raises as `make_plan`."""
    if not Path(config.data.path).exists():
        return None
    _, splits = load_splits(config.data, config.model, torch.device("cpu"))
    settings = config.training
    batches = len(list(batch_indices(len(splits.train), settings.batch_size, drop_last=True)))
    steps = ceil(batches / settings.gradient_accumulation_steps)
    total = settings.epochs * steps
    return Work(
        train_windows=len(splits.train),
        validation_windows=len(splits.validation),
        test_windows=len(splits.test),
        batches_per_epoch=batches,
        steps_per_epoch=steps,
        steps=total if settings.max_steps is None else min(total, settings.max_steps),
    )


def _device(asked: str) -> tuple[torch.device, bool]:
    """Return the device of the run, and whether this machine has it."""
    if asked.startswith("cuda"):
        return torch.device(asked), device_exists(asked)
    return resolve_device(asked), True


def _precision(asked: str, device: torch.device, present: bool) -> torch.dtype | None:
    """Return the 16-bit dtype of products, or None for float32."""
    if present:
        return product_dtype(resolve_precision(asked, device))
    precisions: dict[str, Precision] = {"auto": "bf16", "bf16": "bf16", "fp16": "fp16"}
    return product_dtype(precisions.get(asked, "highest"))  # all recent GPUs support bfloat16


def _memory(
    config: Config,
    backend: str,
    device: torch.device,
    present: bool,
    precision: torch.dtype | None,
    parameters: Parameters,
    work: Work | None,
) -> Needed:
    file = Path(config.data.path)
    file_bytes = file.stat().st_size if work is not None else 0
    recurrences = 0
    if backend == "reference" and config.model.use_celestial_graph:
        recurrences = len(BODIES) * config.model.seq_len
    on_cpu = device.type == "cpu"
    compiled = backend != "reference" and config.run.compile != "off"
    count = cache(lambda batch: trace_memory(config, batch, precision, device.type, backend))

    def bytes_of(memory: Memory) -> int:
        if on_cpu:
            return process_bytes(memory, parameters.trainable_bytes, recurrences, file_bytes, compiled=compiled)
        return tensor_bytes(memory, parameters.trainable_bytes)

    size = config.training.batch_size
    predicted = bytes_of(count(size))
    bounds = _bounds(config, device, present)
    max_batch = 2**20 if work is None else work.train_windows
    max_kept = KEEPING_OPERATORS * keep_at_most(config, device.type)  # once: it depends on free memory

    def need(batch: int) -> int:
        if backend == "reference":
            return bytes_of(count(batch))
        # Counting a batch size takes seconds. Memory is linear in it, up to the most that operators keep.
        keeping = [count(size), count(_SECOND if size != _SECOND else 2 * _SECOND)]
        recomputing = [memory.again or memory for memory in keeping]
        return min(bytes_of(line_through(*keeping)(batch)), bytes_of(line_through(*recomputing)(batch)) + max_kept)

    return Needed(
        kept=count(size).kept,
        tensors=tensor_bytes(count(size), parameters.trainable_bytes),
        process=predicted if on_cpu else None,
        limits=tuple(Limit(name, limit, predicted) for name, limit in bounds.items()),
        largest_batch=largest_batch(need, min(bounds.values()), size, max_batch) if bounds else None,
    )


def _bounds(config: Config, device: torch.device, present: bool) -> dict[str, int]:
    """Return name -> bytes of each limit on the memory of the device."""
    if device.type == "cpu":
        limit, setting = config.run.memory_limit_gb, "run.memory_limit_gb"
        bounds = {"memory available on this machine": psutil.virtual_memory().available}
        container = container_memory_limit()
        if container is not None:
            bounds["memory limit of this container"] = container
    else:
        limit, setting = config.run.device_memory_limit_gb, "run.device_memory_limit_gb"
        bounds = {f"free memory of {device}": torch.cuda.mem_get_info(device)[0]} if present else {}
    return bounds if limit is None else bounds | {setting: int(limit * GIB)}


def _disk(config: Config, count: int, tensors: int) -> Disk:
    weights = FLOAT32 * count + _WEIGHTS_EXTRA * tensors
    training = ADAM_TENSORS * FLOAT32 * count + _TRAINING_EXTRA * tensors
    checkpoint = weights + training + _CHECKPOINT_EXTRA
    folder = Path(config.run.output).absolute()
    while not folder.exists():
        folder = folder.parent
    return Disk(checkpoint, (config.run.keep_checkpoints + 2) * checkpoint, shutil.disk_usage(folder).free)


def _warnings(plan: Plan) -> list[str]:
    messages = []
    if not plan.device_present:
        messages.append(f"{plan.device} is not on this machine: its free memory is unknown")
    if plan.work is None:
        messages.append(f"{plan.data} does not exist: windows and steps are unknown; run `pgat-fast data build`")
    for limit in plan.memory.limits:
        if limit.share >= NEAR:  # as a run warns
            verb = "will not fit into" if limit.share >= 1 else "come close to"
            messages.append(
                f"the {limit.predicted / GIB:.2f} GiB that are predicted {verb} {limit.name}, {limit.limit / GIB:.2f} "
                f"GiB: {_advice(plan)}"
            )
    if plan.disk.kept > plan.disk.free:
        messages.append(
            f"checkpoints will take {plan.disk.kept / GIB:.2f} GiB, but {plan.disk.free / GIB:.2f} GiB are free: make "
            "room, lower run.keep_checkpoints or choose another run.output"
        )
    return messages


def _advice(plan: Plan) -> str:
    fit = plan.memory.largest_batch
    if fit is None or fit.batch == 0:
        return "lower model.seq_len, since not even a batch of 1 fits"
    if fit.batch >= plan.batch_size:
        return "leave more room, since it is a prediction"
    return (
        f"lower training.batch_size from {plan.batch_size} to {fit.batch} or less (and raise "
        f"training.gradient_accumulation_steps from {plan.gradient_accumulation_steps}, for the same optimizer step)"
    )
