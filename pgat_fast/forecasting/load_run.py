"""Loading of trained runs for forecasting."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgat_fast.config import Config, ModelConfig, config_to_dict, load_config
from pgat_fast.data.columns import TARGETS
from pgat_fast.data.scaling import Scaler
from pgat_fast.errors import BackendError, CheckpointError, ConfigError, DataError
from pgat_fast.evaluation.intervals import Intervals
from pgat_fast.model import build_model
from pgat_fast.model.kernel_choice import kept_choice
from pgat_fast.model.random_numbers import drawing_from
from pgat_fast.training.checkpoint import Checkpoint, choose_checkpoint, fit_weights, read_checkpoint
from pgat_fast.training.other_machine import overrides_setting, with_device
from pgat_fast.training.run_folder import CHECKPOINTS
from pgat_fast.utils.device import resolve_device

OVERRIDABLE = frozenset(
    {
        *("data.path", "data.base_price", "data.trading_days", "training.batch_size"),
        *("run.device", "run.backend", "run.combiner_chunk"),
    }
)
"""Settings that may differ from those of the training because they do not change the trained model."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model with its configuration, scalers, intervals and results."""

    folder: Path
    checkpoint: Path
    """Folder of the checkpoint that the weights come from."""
    config: Config
    """Settings of the training and the overrides; `run.device` is `device`."""
    model: nn.Module
    """In evaluation mode, on `device`."""
    device: torch.device
    input_scaler: Scaler
    target_scaler: Scaler
    intervals: Intervals | None
    """None if none were calibrated for this checkpoint."""
    about: dict[str, Any]
    """Metadata of the checkpoint."""
    results: dict[str, Any]
    """Contents of `results.json`; empty if the run is not finished."""


def load_run(folder: str | Path, checkpoint: str = "best", device: str = "auto", overrides: Sequence[str] = ()) -> Run:
    """Load the run in `folder`, finished or not.

    Args:
        folder: `runs/NAME`.
        checkpoint: `best` (lowest validation loss so far), `latest`, the name of a checkpoint in `checkpoints/`, or
            its path.
        device: `auto` (that of an override of `run.device`, otherwise the first GPU if there is one), `cpu`, `cuda` or
            `cuda:N`. The device of the training need not exist.
        overrides: settings as `KEY=VALUE`, limited to those in `OVERRIDABLE`.

    Raises:
        CheckpointError: a part of the run is missing or damaged; the message names it.
        ConfigError: an override is not in `OVERRIDABLE` and differs from the training.
        BackendError: the device does not exist.
    """
    folder = Path(folder)
    config, trained_config = _read_config(folder, overrides)
    overridden = device == "auto" and overrides_setting(overrides, "device")
    resolved_device = resolve_device(config.run.device if overridden else device)
    chosen_by_user = overridden or device != "auto"
    _log_device(folder, trained_config.run.device, resolved_device, logging.INFO if chosen_by_user else logging.WARNING)
    config = with_device(config, resolved_device)
    path, stored = _find_checkpoint(folder, checkpoint)
    results = _read_json(folder / "results.json") or {}
    target_scaler = _read_scaler(path, stored.about, "target_scaler", config.model.c_out)
    return Run(
        folder=folder,
        checkpoint=path,
        config=config,
        model=_load_model(config, path, stored).to(resolved_device).eval(),
        device=resolved_device,
        input_scaler=_read_scaler(path, stored.about, "input_scaler", config.model.enc_in),
        target_scaler=target_scaler,
        intervals=_read_intervals(folder, path.name, results, config.model, target_scaler.columns),
        about=stored.about,
        results=results,
    )


def target_scaler_of(folder: Path) -> Scaler:
    """Return the scaler of the targets of a run, without its model. Raises CheckpointError as `load_run` does."""
    path, stored = _find_checkpoint(folder, "best")
    return _read_scaler(path, stored.about, "target_scaler", load_config(folder / "config.yaml").model.c_out)


def _read_config(folder: Path, overrides: Sequence[str]) -> tuple[Config, Config]:
    """Return the configuration with and without `overrides`."""
    path = folder / "config.yaml"
    if not path.is_file():
        problem = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"{folder}: {problem}: name the folder of a run, such as runs/quickstart")
    trained_config, config = load_config(path), load_config(path, overrides)
    trained = config_to_dict(trained_config)
    for section, settings in config_to_dict(config).items():
        for key, value in settings.items():
            if value != trained[section][key] and f"{section}.{key}" not in OVERRIDABLE:
                raise ConfigError(
                    f"{section}.{key}={value}: the run was trained with {trained[section][key]}; only "
                    f"{', '.join(sorted(OVERRIDABLE))} may differ"
                )
    return config, trained_config


def _log_device(folder: Path, trained_on: str, device: torch.device, level: int) -> None:
    """Log that the run is computed on another device than it was trained on, if the setting names one."""
    if trained_on == "auto":
        return
    trained_device = torch.device(trained_on)
    if (trained_device.type, trained_device.index or 0) != (device.type, device.index or 0):
        _log.log(level, "%s: trained on %s, computed on %s: results agree up to rounding", folder, trained_on, device)


def _find_checkpoint(folder: Path, which: str) -> tuple[Path, Checkpoint]:
    root = folder / CHECKPOINTS
    if Path(which).name != which:
        path = Path(which)
        if path.parent.resolve() != root.resolve():
            raise CheckpointError(f"{path}: not a checkpoint of {folder}: name one of those in {root}")
        return path, read_checkpoint(path, training=False)
    chosen = choose_checkpoint(root, which)
    if chosen is None:
        advice = "train first, or resume with `train --resume`"
        if (folder / "runs").is_dir():
            advice = f"a folder of runs: name one of those in {folder / 'runs'}"
        raise CheckpointError(f"{root}: no readable checkpoint: {advice}")
    return chosen


def _load_model(config: Config, path: Path, stored: Checkpoint) -> nn.Module:
    # Initialising the parameters must not advance the generator of the process, from which other threads may draw.
    with drawing_from(torch.Generator()):
        try:
            kernels = kept_choice(stored.about.get("kernels", "none"), resolve_device(config.run.device))
            model = build_model(config, kernels=kernels)
        except BackendError as error:
            _log.warning("%s; the model is computed by another backend, which agrees up to rounding", error)
            model = build_model(config, backend="auto")
    fit_weights(model, path, stored)
    return model


def _read_scaler(path: Path, about: dict[str, Any], name: str, columns: int) -> Scaler:
    try:
        scaler = Scaler.from_dict(about[name])
    except KeyError as error:
        raise CheckpointError(f"{path}: has no {name}: use another checkpoint") from error
    except DataError as error:
        raise CheckpointError(f"{path}: {name}: {error}: use another checkpoint") from error
    if len(scaler.columns) != columns:
        raise CheckpointError(f"{path}: {name} is for {len(scaler.columns)} columns, but the model has {columns}")
    return scaler


def _read_intervals(
    folder: Path, checkpoint: str, results: dict[str, Any], model: ModelConfig, targets: tuple[str, ...]
) -> Intervals | None:
    """Read the intervals calibrated for `checkpoint`; return None if there are none.

    `intervals.json` of a finished run belongs to its best checkpoint; `pgat-fast evaluate` writes those of others.

    Raises:
        CheckpointError: the file is damaged or does not fit the model.
    """
    training_path, evaluation_path = folder / "intervals.json", folder / f"evaluation-{checkpoint}" / "intervals.json"
    calibrated_checkpoint = (results.get("checkpoints") or {}).get("best", checkpoint)
    path = training_path if training_path.exists() and calibrated_checkpoint == checkpoint else evaluation_path
    content = _read_json(path)
    if content is None:
        return None
    try:
        intervals = Intervals.from_dict(content)
    except DataError as error:
        raise CheckpointError(f"{path}: {error}: delete it, then `pgat-fast evaluate {folder}`") from error
    method = "mixture" if model.use_mixture_decoder else "conformal"
    widths = [width for width in (*intervals.scaled, *(intervals.log_price or ())) if width is not None]
    fits = intervals.method == method and all(width.shape == (model.pred_len, model.c_out) for width in widths)
    if not fits or (method == "conformal" and (intervals.log_price is not None) != (targets == TARGETS)):
        raise CheckpointError(f"{path}: does not fit this model: delete it, then `pgat-fast evaluate {folder}`")
    return intervals


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the contents of the file, or None if there is no file.

    Raises:
        CheckpointError: the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}: delete it, then `pgat-fast evaluate` again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object: delete it, then `pgat-fast evaluate` again")
    return content
