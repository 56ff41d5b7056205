"""Where a run stands: everything that must survive a kill, besides the weights."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from pgat_fast.config.schema import TrainingConfig


@dataclass(frozen=True)
class Epoch:
    """What is known of one epoch when it is over. Losses are means over windows, in scaled units."""

    epoch: int
    """From 1."""
    learning_rate: float
    optimizer_steps: int
    skipped_steps: int
    """Of these, steps that were left out because their gradient was not finite."""
    train_loss: float | None
    """None where every step was left out."""
    validation_loss: float
    seconds: float
    complete: bool = True
    """False where the run ended within it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """A place between two optimizer steps. Never changed in place: an old one stays a snapshot."""

    epoch: int = 0
    """Number of the epoch under way, from 0: as many are over."""
    cycle: int = 0
    """Optimizer steps of this epoch that are done; the sample order is a function of seed and epoch."""
    step: int = 0
    """Optimizer steps of the run that are done."""
    seconds: float = 0.0
    """Of training, in all processes so far."""
    epoch_seconds: float = 0.0
    """Of these, in the epoch under way."""
    resumes: int = 0
    started: str = ""
    """When the run began, ISO 8601."""
    initial_validation_loss: float | None = None
    epochs: tuple[Epoch, ...] = ()
    """The epochs that are over."""
    best: str | None = None
    """Name of the checkpoint with the best validation loss."""
    best_epoch: int = 0
    best_loss: float | None = None
    peaks: dict[str, float | None] = field(default_factory=dict)
    """Highest memory use of the processes before this one."""

    @property
    def name(self) -> str:
        """The name of a checkpoint of this place."""
        return f"epoch-{self.epoch:04d}-step-{self.step:08d}"

    def after_epoch(self, epoch: Epoch) -> Self:
        """The place behind `epoch`, which has just been validated."""
        after = replace(self, epoch=self.epoch + 1, cycle=0, epoch_seconds=0.0, epochs=(*self.epochs, epoch))
        if self.best_loss is None or epoch.validation_loss < self.best_loss:
            after = replace(after, best=after.name, best_epoch=epoch.epoch, best_loss=epoch.validation_loss)
        return after

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers."""
        return asdict(self) | {"epochs": [epoch.to_dict() for epoch in self.epochs]}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Raises TypeError or KeyError where `content` is not what `to_dict` gives."""
        return cls(**content | {"epochs": tuple(Epoch(**epoch) for epoch in content["epochs"])})


@dataclass(frozen=True)
class Ending:
    """What a run has come to when training ends."""

    why: str
    """In words."""
    epochs: tuple[Epoch, ...]
    """All of them; the last may be a part of one."""
    best: str | None
    """Name of the checkpoint with the best validation loss, which may be that of the part."""
    best_epoch: int
    best_loss: float | None


def end_of_training(progress: Progress, settings: TrainingConfig) -> str | None:
    """Why no further epoch is trained, in words; None where training goes on."""
    if progress.epoch >= settings.epochs:
        return f"all {settings.epochs} epochs are done"
    if progress.epochs and progress.epoch - progress.best_epoch >= settings.patience:
        return f"no better validation loss for {settings.patience} epochs (training.patience)"
    if settings.max_steps is not None and progress.step >= settings.max_steps:
        return f"training.max_steps {settings.max_steps} reached"
    return None


def most_steps(settings: TrainingConfig, windows: int, seconds_per_step: float) -> int:
    """Optimizer steps of the whole run as its limits allow, with `windows` to train on.

    Early stopping is not foreseen; `seconds_per_step` tells what `max_minutes` allows.
    """
    steps = settings.epochs * math.ceil(windows // settings.batch_size / settings.gradient_accumulation_steps)
    if settings.max_steps is not None:
        steps = min(steps, settings.max_steps)
    if settings.max_minutes is not None:
        steps = min(steps, math.ceil(60 * settings.max_minutes / seconds_per_step))
    return steps
