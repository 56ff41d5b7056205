"""Progress of a run: counters, losses and times that must survive a kill, and the end of training."""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from pgat_fast.config.schema import TrainingConfig


@dataclass(frozen=True)
class Epoch:
    """Record of one epoch after its end. Losses are means over windows, in scaled units."""

    epoch: int
    """Number of the epoch, from 1."""
    learning_rate: float
    optimizer_steps: int
    skipped_steps: int
    """Number of these steps that were left out because their gradient was not finite."""
    train_loss: float | None
    """None if every step was left out."""
    validation_loss: float
    seconds: float
    complete: bool = True
    """False if the run ended within the epoch."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dict of plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """Progress between two optimizer steps. Immutable, so that an old one remains a snapshot."""

    epoch: int = 0
    """Number of completed epochs, which is also the number of the current one, from 0."""
    epoch_steps: int = 0
    """Completed optimizer steps of this epoch; the sample order is a function of seed and epoch. Stored as `cycle`."""
    step: int = 0
    """Completed optimizer steps of the run."""
    seconds: float = 0.0
    """Seconds of training in all processes so far."""
    epoch_seconds: float = 0.0
    """Seconds of these in the current epoch."""
    resumes: int = 0
    started: str = ""
    """Time at which the run began, ISO 8601."""
    initial_validation_loss: float | None = None
    epochs: tuple[Epoch, ...] = ()
    """Completed epochs."""
    best: str | None = None
    """Name of the checkpoint with the best validation loss."""
    best_epoch: int = 0
    best_loss: float | None = None
    peaks: dict[str, float | None] = field(default_factory=dict)
    """Highest memory use of earlier processes of the run, in GiB."""

    @property
    def name(self) -> str:
        """Name of a checkpoint at this point."""
        return f"epoch-{self.epoch:04d}-step-{self.step:08d}"

    def after_step(self) -> Self:
        """Return the progress after one more optimizer step."""
        return replace(self, epoch_steps=self.epoch_steps + 1, step=self.step + 1)

    def after_epoch(self, epoch: Epoch) -> Self:
        """Return the progress after `epoch`, which has just been validated."""
        progress = replace(self, epoch=self.epoch + 1, epoch_steps=0, epoch_seconds=0.0, epochs=(*self.epochs, epoch))
        if self.best_loss is None or epoch.validation_loss < self.best_loss:
            progress = replace(progress, best=progress.name, best_epoch=epoch.epoch, best_loss=epoch.validation_loss)
        return progress

    def to_dict(self) -> dict[str, Any]:
        """Return the progress as plain dicts, lists and values."""
        content = asdict(self) | {"epochs": [epoch.to_dict() for epoch in self.epochs]}
        content["cycle"] = content.pop("epoch_steps")
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Return the progress that `to_dict` converted. Raise TypeError or KeyError for any other `content`."""
        values = content | {"epochs": tuple(Epoch(**epoch) for epoch in content["epochs"])}
        return cls(epoch_steps=values.pop("cycle"), **values)


@dataclass(eq=False)
class RunState:
    """Where a run is: the trainer changes it, and what records and saves the run reads it."""

    progress: Progress
    stage: str = "start"
    """start, train, validation or evaluation."""
    begun: bool = False
    """Whether the checkpoint to resume, if any, has been restored."""
    clock: float = field(default_factory=time.monotonic)
    """Time up to which `progress` counts the duration of the run and of the epoch."""

    def count_seconds(self) -> None:
        """Add the time since the last call to the durations of the run and the epoch."""
        now = time.monotonic()
        passed, self.clock = now - self.clock, now
        self.progress = replace(
            self.progress,
            seconds=self.progress.seconds + passed,
            epoch_seconds=self.progress.epoch_seconds + passed,
        )


@dataclass(frozen=True)
class Ending:
    """Outcome of training."""

    reason: str
    """Reason for the end, as text."""
    epochs: tuple[Epoch, ...]
    """All epochs; the last one may be partial."""
    best: str | None
    """Name of the checkpoint with the best validation loss, which may be that of the partial epoch."""
    best_epoch: int
    best_loss: float | None

    @classmethod
    def of(cls, progress: Progress, reason: str) -> Self:
        """Return the outcome of training that ends with a whole epoch."""
        return cls(reason, progress.epochs, progress.best, progress.best_epoch, progress.best_loss)

    def with_partial_epoch(self, epoch: Epoch, checkpoint: str) -> Self:
        """Return the outcome with the epoch in which a limit ended training, whose weights are in `checkpoint`."""
        ending = replace(self, epochs=(*self.epochs, epoch))
        if ending.best_loss is not None and ending.best_loss <= epoch.validation_loss:
            return ending
        return replace(ending, best=checkpoint, best_epoch=epoch.epoch, best_loss=epoch.validation_loss)


def end_of_training(progress: Progress, settings: TrainingConfig) -> str | None:
    """Return the reason, as text, why no further epoch is trained; None if training continues."""
    if progress.epoch >= settings.epochs:
        return f"all {settings.epochs} epochs are done"
    if progress.epochs and progress.epoch - progress.best_epoch >= settings.patience:
        return f"no better validation loss for {settings.patience} epochs (training.patience)"
    if settings.max_steps is not None and progress.step >= settings.max_steps:
        return f"training.max_steps {settings.max_steps} reached"
    return None


def most_steps(settings: TrainingConfig, windows: int, seconds_per_step: float) -> int:
    """Return the number of optimizer steps that the limits of the whole run allow, with `windows` training windows.

    Early stopping is not taken into account. `seconds_per_step` converts `max_minutes` to steps.
    """
    steps = settings.epochs * math.ceil(windows // settings.batch_size / settings.gradient_accumulation_steps)
    if settings.max_steps is not None:
        steps = min(steps, settings.max_steps)
    if settings.max_minutes is not None:
        steps = min(steps, math.ceil(60 * settings.max_minutes / seconds_per_step))
    return steps
