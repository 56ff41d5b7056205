"""Runs of another machine: stored settings that this machine cannot follow, and data files that are elsewhere.

The stored device and backend are those of the training. They need not be those of a forecast or an evaluation, which
are computed here with the same results up to rounding.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pgat_fast.config import Config
from pgat_fast.config.legacy import OLD_NAMES
from pgat_fast.config.schema import RunConfig
from pgat_fast.errors import BackendError, DataError
from pgat_fast.utils.device import device_exists, resolve_device
from pgat_kernels.dispatch import why_no_kernels

logger = logging.getLogger(__name__)


def with_device(config: Config, device: torch.device) -> Config:
    """Return `config` with `run.device` set to `device`."""
    return _with_run_settings(config, {"device": str(device)})


def unavailable_settings(run: RunConfig) -> list[str]:
    """Return which of `run.device` and `run.backend` this machine cannot follow, as `setting=value`."""
    missing = [] if device_exists(run.device) else [f"run.device={run.device}"]
    device = resolve_device("auto" if missing else run.device)
    if run.backend == "triton" and why_no_kernels(device) is not None:
        missing.append("run.backend=triton")
    return missing


def with_available_settings(config: Config, overrides: Sequence[str]) -> Config:
    """Return `config` with `auto` for those `unavailable_settings` that `overrides` do not name; log the change."""
    missing = [
        setting for setting in unavailable_settings(config.run) if not overrides_setting(overrides, _name(setting))
    ]
    if not missing:
        return config
    logger.warning("this machine lacks %s, which the run was trained with: auto is used instead", " and ".join(missing))
    return _with_run_settings(config, {_name(setting): "auto" for setting in missing})


def overrides_setting(overrides: Sequence[str], name: str) -> bool:
    """Return whether one of `overrides`, texts `key=value`, sets `run.NAME`, under any of its names."""
    keys = [override.partition("=")[0].strip().removeprefix("run.") for override in overrides]
    return name in keys or any(getattr(OLD_NAMES.get(key), "setting", None) == f"run.{name}" for key in keys)


def _name(setting: str) -> str:
    return setting.partition("=")[0].removeprefix("run.")


def check_resumable(config: Config, folder: Path) -> None:
    """Check that the run in `folder`, with the settings `config`, can be trained further on this machine.

    Raises:
        BackendError: it lacks the device or the backend. They are not replaced silently, since a resumed run is
            otherwise exact, and would take far longer on a slower device.
        DataError: the data file is missing.
    """
    missing = unavailable_settings(config.run)
    if missing:
        remedy = " ".join(f"run.{_name(setting)}=auto" for setting in missing)
        raise BackendError(
            f"{folder}: the run was trained with {' and '.join(missing)}, which this machine lacks: add --set {remedy} "
            "to resume it here, with results that differ by rounding from those of an uninterrupted run"
        )
    check_data_file(config, folder)


def data_file_of(config: Config, folder: Path, about: Mapping[str, Any]) -> str:
    """Return the path of the data file of the run in `folder`: `data.path`, or where it was during the training.

    The second is for a relative `data.path` in another current folder. `about` is the metadata of a checkpoint.

    Raises DataError, with the setting to give, if neither exists.
    """
    data = about.get("data") or {}
    earlier_place = data.get("absolute_path")
    moved = not Path(config.data.path).exists() and config.data.path == data.get("path")
    if moved and isinstance(earlier_place, str) and Path(earlier_place).is_file():
        return earlier_place
    check_data_file(config, folder)
    return config.data.path


def check_data_file(config: Config, folder: Path) -> None:
    """Raise DataError, with the setting to give, if the data file of the run in `folder` does not exist."""
    path = Path(config.data.path)
    if not path.exists():
        place = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(
            f"{path}: there is no such file{place}; it is the data file of the run (data.path in "
            f"{folder / 'config.yaml'}): if it has been moved, add --set data.path=FILE"
        )


def _with_run_settings(config: Config, settings: dict[str, str]) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update=settings)})
