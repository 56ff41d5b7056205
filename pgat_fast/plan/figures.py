"""The figures of a plan."""

from dataclasses import dataclass

from pgat_fast.plan.memory import Fit


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, and bytes of their values, gradients and optimizer state; all float32."""

    count: int
    original_count: int
    """Count in the layout of existing checkpoints, which includes parameters that never receive a gradient."""
    trainable_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    """Bytes of Adam's state."""


@dataclass(frozen=True)
class Work:
    """Numbers of windows, batches and optimizer steps of a run."""

    train_windows: int
    validation_windows: int
    test_windows: int
    batches_per_epoch: int
    steps_per_epoch: int
    """Optimizer steps of an epoch."""
    steps: int
    """Optimizer steps of the run, unless early stopping or a time limit ends it."""


@dataclass(frozen=True)
class Computation:
    """FLOPs of matrix products and convolutions; a multiplication and an addition are 2."""

    forward: int
    """FLOPs of the forward pass of one batch."""
    micro_batch: int
    """FLOPs of forward pass, recomputation and backward pass of one batch."""
    optimizer_step: int
    """FLOPs of `gradient_accumulation_steps` batches."""
    run: int | None
    """FLOPs of all optimizer steps; None if the number of windows is not known."""


@dataclass(frozen=True)
class Limit:
    """A limit on memory and the prediction for it, in bytes."""

    name: str
    """The setting or the resource of the machine."""
    limit: int
    predicted: int

    @property
    def share(self) -> float:
        return self.predicted / self.limit


@dataclass(frozen=True)
class Needed:
    """Predicted memory, in bytes."""

    kept: int
    """Inputs and activations kept for the backward pass."""
    tensors: int
    """Peak of all tensors: parameters, Adam, gradients, activations, temporaries."""
    process: int | None
    """Peak of the process; None on a GPU, where it was not measured."""
    limits: tuple[Limit, ...]
    largest_batch: Fit | None
    """The largest `batch_size` that fits into all of `limits`; None if no limit is known."""


@dataclass(frozen=True)
class Disk:
    """Disk space, in bytes."""

    checkpoint: int
    kept: int
    """Bytes of `keep_checkpoints` checkpoints, the best one and one being written."""
    free: int


@dataclass(frozen=True)
class Plan:
    """Predicted resources of a run; `dataclasses.asdict` returns plain JSON."""

    backend: str
    device: str
    device_present: bool
    precision: str
    """Precision of products; everything else is float32."""
    batch_size: int
    gradient_accumulation_steps: int
    parameters: Parameters
    work: Work | None
    """None if the data file does not exist."""
    data: str
    computation: Computation
    memory: Needed
    disk: Disk
    warnings: tuple[str, ...]
    seconds: float
    """Duration of planning."""
