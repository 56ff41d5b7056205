"""The figures of a plan."""

from dataclasses import dataclass

from pgat_fast.plan.memory import Fit


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters, and the bytes of what belongs to them; all float32."""

    count: int
    original_count: int
    """In the layout of existing checkpoints, which has parameters that no gradient can reach."""
    trainable_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    """Of Adam."""


@dataclass(frozen=True)
class Work:
    """How often the parts of a run are done."""

    train_windows: int
    validation_windows: int
    test_windows: int
    batches_per_epoch: int
    steps_per_epoch: int
    """Optimizer steps."""
    steps: int
    """Optimizer steps of the run, if no patience or clock ends it."""


@dataclass(frozen=True)
class Computation:
    """FLOPs of matrix products and convolutions; a multiplication and an addition are 2."""

    forward: int
    """Of one batch."""
    micro_batch: int
    """Forward, recomputation and backward pass of one batch."""
    optimizer_step: int
    """Of `gradient_accumulation_steps` batches."""
    run: int | None
    """Of all optimizer steps; None where the number of windows is not known."""


@dataclass(frozen=True)
class Limit:
    """A bound on memory beside the prediction for it; bytes."""

    name: str
    """A setting, or what the machine has."""
    limit: int
    predicted: int

    @property
    def share(self) -> float:
        return self.predicted / self.limit


@dataclass(frozen=True)
class Needed:
    """Predicted memory, bytes."""

    kept: int
    """Inputs and activations that wait for the backward pass."""
    tensors: int
    """The most that tensors hold at once: parameters, Adam, gradients, activations, temporaries."""
    process: int | None
    """The most that the process holds; None on a GPU, where it was not measured."""
    limits: tuple[Limit, ...]
    largest_batch: Fit | None
    """The largest `batch_size` that fits into all of `limits`; None where none is known."""


@dataclass(frozen=True)
class Disk:
    """Bytes."""

    checkpoint: int
    kept: int
    """Of `keep_checkpoints`, the best and one that is being written."""
    free: int


@dataclass(frozen=True)
class Plan:
    """What a run will take. `dataclasses.asdict` gives plain JSON."""

    backend: str
    device: str
    device_present: bool
    precision: str
    """Of products; everything else is float32."""
    batch_size: int
    gradient_accumulation_steps: int
    parameters: Parameters
    work: Work | None
    """None where the data file does not exist."""
    data: str
    computation: Computation
    memory: Needed
    disk: Disk
    warnings: tuple[str, ...]
    seconds: float
    """That planning took."""
