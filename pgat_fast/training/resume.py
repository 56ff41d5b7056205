"""Resumption of a run: choice of the checkpoint, and comparison of its configuration and data with the current ones."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pgat_fast.config import Config, config_to_dict
from pgat_fast.config.legacy import migrate
from pgat_fast.data.table import Table
from pgat_fast.errors import CheckpointError, ConfigError
from pgat_fast.training.checkpoint import Checkpoint, newest_good, read_checkpoint
from pgat_fast.training.manifest import find_checkpoints
from pgat_fast.training.run_folder import CHECKPOINTS, unused_path
from pgat_fast.training.run_metadata import kept_precision
from pgat_fast.training.state import Progress

logger = logging.getLogger(__name__)

LIMITS = frozenset(
    {f"training.{name}" for name in ("epochs", "max_steps", "max_minutes", "patience", "nonfinite_steps")}
)
"""Settings that may change when a run is resumed, since they only set how far it goes."""

BATCHES = frozenset({"training.batch_size", "training.gradient_accumulation_steps", "training.seed"})
"""Settings that determine the windows of an optimizer step."""

MOVABLE = frozenset({"data.path", "data.trading_days"})
"""Settings of `data` that do not change the training data; the content of the file is compared."""

_DIFFERENT = "results will differ from an uninterrupted run"
_ROUNDING = "results will differ by rounding"
EFFECTS = {
    "run.precision": _DIFFERENT,
    "run.exact_dropout": _DIFFERENT,
    **dict.fromkeys(("run.device", "run.backend", "run.compile", "run.combiner_chunk"), _ROUNDING),
}
"""Settings of `run` that change the computation -> effect of another value on a resumed run."""


@dataclass(frozen=True, eq=False)
class ResumePoint:
    """A checkpoint from which a run resumes."""

    path: Path
    checkpoint: Checkpoint
    progress: Progress | None
    """None for an imported checkpoint, which contains weights only."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the checkpoint at `path`.

        Raises CheckpointError if it is damaged or its training state is not one that a run stores.
        """
        return cls.of(path, read_checkpoint(path))

    @classmethod
    def of(cls, path: Path, checkpoint: Checkpoint) -> Self:
        """Return `checkpoint`, read from `path`, as `read` does."""
        stored = checkpoint.training
        try:
            return cls(path, checkpoint, Progress.from_dict(stored["progress"]) if stored else None)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise unfit_training_state(path, error) from error

    def check_config(self, config: Config) -> None:
        """Compare the configuration stored in the checkpoint with `config`, and log what may have changed.

        Changed limits are information. Other changed settings of training cause a warning: the run continues with
        them, but neither configuration describes it any longer. Raises ConfigError if the model, the data or (within
        an epoch) the batches differ.
        """
        stored = migrate(self.checkpoint.about.get("config", {}))
        changed = {
            f"{section}.{key}": (stored[section][key], value)
            for section, settings in config_to_dict(config).items()
            for key, value in settings.items()
            if key in stored.get(section, {}) and stored[section][key] != value
        }
        mid_epoch = self.progress is not None and self.progress.epoch_steps > 0
        refused = [
            f"{name} was {previous!r}, now {value!r}"
            for name, (previous, value) in changed.items()
            if name.startswith("model.")
            or (name.startswith("data.") and name not in MOVABLE)
            or (mid_epoch and name in BATCHES)
        ]
        if refused:
            raise ConfigError(
                f"{self.path}: cannot resume with other settings: {'; '.join(refused)}. Restore them, or start a new "
                "run"
            )
        cosine = config.training.lr_schedule in ("warmup_cosine", "cosine")
        for name, (previous, value) in changed.items():
            effect = _DIFFERENT if name.startswith("training.") else EFFECTS.get(name)
            if name == "run.precision" and value in ("auto", kept_precision(self.checkpoint.about)):
                continue  # `auto` keeps the precision of the checkpoint
            if name in LIMITS and not (cosine and name == "training.epochs"):
                logger.info("%s: %s, was %s", name, value, previous)
            elif effect is not None:
                logger.warning("%s is %s, was %s: %s", name, value, previous, effect)

    def check_data(self, table: Table) -> None:
        """Raise ConfigError if `table` was not read from the data that the run was trained on."""
        trained_sha256 = self.checkpoint.about.get("data", {}).get("sha256")
        if trained_sha256 not in (None, table.sha256):
            raise ConfigError(
                f"{self.path}: the run was trained on another content of the data file than {table.source} has now "
                f"(sha256 {trained_sha256}, now {table.sha256}): restore the file, name it in data.path, or start a "
                "new run"
            )


def choose_resume_point(folder: Path, name: str | None) -> ResumePoint:
    """Return the checkpoint to resume: `name`, or the newest good one in `folder`.

    Changes no file. Raises CheckpointError if there is none, and what `ResumePoint.read` raises.
    """
    root = folder / CHECKPOINTS
    if name is not None:
        return ResumePoint.read(root / name)
    newest = newest_good(root)
    if newest is None:
        raise CheckpointError(f"{root}: no readable checkpoint: start a new run, without --resume")
    return ResumePoint.of(*newest)


def unfit_training_state(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a training state of the checkpoint at `path` that is intact but cannot be used."""
    return CheckpointError(
        f"{path}: the training state does not fit a run with these settings ({type(error).__name__}: {error}): resume "
        "from another checkpoint"
    )


def move_superseded(chosen: Path) -> None:
    """Move checkpoints newer than `chosen` into `superseded/` beside it, since the run resumes before them.

    Either an older checkpoint was requested, or they are damaged; nothing is deleted.
    """
    paths = find_checkpoints(chosen.parent)
    for newer in paths[paths.index(chosen) + 1 :] if chosen in paths else ():
        superseded = chosen.parent / "superseded"
        superseded.mkdir(exist_ok=True)
        target = unused_path(superseded / newer.name)
        newer.rename(target)
        logger.warning("%s: moved to %s, because the run resumes from %s", newer, target, chosen.name)
