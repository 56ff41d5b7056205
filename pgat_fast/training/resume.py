"""Resumption of a run: choice of the checkpoint, and comparison of its configuration and data with the current ones."""

import logging
from pathlib import Path
from typing import Any

from pgat_fast.config import Config, config_to_dict
from pgat_fast.config.legacy import migrate
from pgat_fast.errors import CheckpointError, ConfigError
from pgat_fast.training.checkpoint import Checkpoint, find_checkpoints, newest_good, read_checkpoint
from pgat_fast.training.run_folder import CHECKPOINTS
from pgat_fast.training.state import Progress

logger = logging.getLogger(__name__)

LIMITS = frozenset({"epochs", "max_steps", "max_minutes", "patience", "nonfinite_steps"})
"""Settings of `training` that may change when a run is resumed, since they only set how far it goes."""

CYCLE = frozenset({"batch_size", "gradient_accumulation_steps", "seed"})
"""Settings of `training` that determine the windows of an optimizer step."""

_OTHERWISE = "the run goes on, but not as it would have"
_ROUNDING = "results agree up to rounding only"
EFFECTS = {
    "precision": _OTHERWISE,
    "exact_dropout": _OTHERWISE,
    **dict.fromkeys(("device", "backend", "compile", "combiner_chunk"), _ROUNDING),
}
"""Settings of `run` that change the computation -> effect of another value on a resumed run."""

MOVABLE = frozenset({"path", "trading_days"})
"""Settings of `data` that do not change the training data; the content of the file is compared."""


def open_checkpoint(folder: Path, name: str | None) -> tuple[Path, Checkpoint]:
    """Return the path and content of the checkpoint to resume: `name`, or the newest good one in `folder`.

    Changes no file. Raises CheckpointError if there is none or `name` is damaged.
    """
    root = folder / CHECKPOINTS
    if name is not None:
        return root / name, read_checkpoint(root / name)
    newest = newest_good(root)
    if newest is None:
        raise CheckpointError(f"{root}: no checkpoint there can be read: start a new run, without --resume")
    return newest


def stored_progress(path: Path, checkpoint: Checkpoint) -> Progress | None:
    """Return the progress stored in `checkpoint`, read from `path`; None if it was imported and holds weights only.

    Raises CheckpointError if its training state is not one that a run stores.
    """
    if not checkpoint.training:
        return None
    try:
        return Progress.from_dict(checkpoint.training["progress"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unfit_training_state(path, error) from error


def unfit_training_state(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a training state of the checkpoint at `path` that is intact but cannot be used."""
    return CheckpointError(
        f"{path}: the training state does not fit a run with these settings ({type(error).__name__}: {error}): resume "
        "from another checkpoint"
    )


def set_newer_aside(chosen: Path) -> None:
    """Move checkpoints newer than `chosen` into `superseded/` beside it, since the run resumes before them.

    Either an older checkpoint was asked for, or they are damaged; nothing is deleted.
    """
    paths = find_checkpoints(chosen.parent)
    for newer in paths[paths.index(chosen) + 1 :] if chosen in paths else ():
        aside = chosen.parent / "superseded"
        aside.mkdir(exist_ok=True)
        target, number = aside / newer.name, 2
        while target.exists():
            target, number = aside / f"{newer.name}-{number}", number + 1
        newer.rename(target)
        logger.warning("%s: set aside as %s: the run goes on from %s", newer, target, chosen.name)


def check_same_run(path: Path, saved: dict[str, Any], config: Config, mid_epoch: bool) -> None:
    """Compare the configuration stored in the checkpoint at `path` with `config`.

    Changed limits are logged. Other changed settings of training cause a warning: the run continues with them, but
    neither configuration describes it any longer. Raises ConfigError if the model, the data or (within an epoch) the
    batches differ.
    """
    current, saved = config_to_dict(config), migrate(saved)
    changed = {
        section: {
            key: (saved.get(section, {}).get(key), value)
            for key, value in current[section].items()
            if key in saved.get(section, {}) and saved[section][key] != value
        }
        for section in current
    }
    refused = [f"model.{key}" for key in changed["model"]]
    refused += [f"data.{key}" for key in changed["data"] if key not in MOVABLE]
    refused += [f"training.{key}" for key in changed["training"] if mid_epoch and key in CYCLE]
    if refused:
        values = "; ".join(
            f"{name} was {changed[section][key][0]!r}, now {changed[section][key][1]!r}"
            for name in refused
            for section, key in [name.split(".")]
        )
        raise ConfigError(f"{path}: cannot go on with other settings: {values}. Restore them, or start a new run")
    for key, (before, now) in changed["training"].items():
        cosine = key == "epochs" and config.training.lr_schedule in ("warmup_cosine", "cosine")
        if key in LIMITS and not cosine:
            logger.info("training.%s: %s, was %s", key, now, before)
        else:
            logger.warning("training.%s is %s, was %s: %s", key, now, before, _OTHERWISE)
    for key, effect in EFFECTS.items():
        if key in changed["run"]:
            before, now = changed["run"][key]
            logger.warning("run.%s is %s, was %s: %s", key, now, before, effect)


def check_same_data(path: Path, saved: dict[str, Any], sha256: str, source: str) -> None:
    """Raise ConfigError if the data file is not the one that the checkpoint at `path` was trained on."""
    saved_sha256 = saved.get("sha256")
    if saved_sha256 is not None and saved_sha256 != sha256:
        raise ConfigError(
            f"{path}: the run was trained on another content of the data file than {source} has now (sha256 "
            f"{saved_sha256}, now {sha256}): restore the file, name it in data.path, or start a new run"
        )
