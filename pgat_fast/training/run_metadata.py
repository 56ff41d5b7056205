"""Metadata of a checkpoint: enough to forecast with it and to decide whether a run can resume from it."""

import os
import platform
from typing import Any

import numpy as np
import torch

from pgat_fast import __version__
from pgat_fast.config import Config, config_to_dict
from pgat_fast.config.legacy import migrate
from pgat_fast.data.table import Table
from pgat_fast.data.trading_days import calendar_of
from pgat_fast.data.windows import Splits
from pgat_fast.model.compilation import Regions


def describe_run(config: Config, table: Table, splits: Splits) -> dict[str, Any]:
    """Return the part of `Checkpoint.about` that all checkpoints of a process share, as plain JSON."""
    return {
        "config": config_to_dict(config),
        "input_scaler": splits.input_scaler.to_dict(),
        "target_scaler": splits.target_scaler.to_dict(),
        "data": {
            "path": config.data.path,
            "absolute_path": os.path.abspath(config.data.path),
            "rows": len(table.dates),
            "first_date": str(table.dates[0]),
            "last_date": str(table.dates[-1]),
            "base_price": table.base_price,
            "sha256": table.sha256,
            "calendar": calendar_of(table.dates),
        },
        "versions": versions(),
        "backend": config.run.backend,
    }


def compiled_regions(about: dict[str, Any]) -> Regions:
    """Return the compiled regions of training; checkpoints of older versions only store whether it was compiled."""
    return about.get("compiled_regions", "whole" if about.get("compiled") else "none")


def kept_precision(about: dict[str, Any]) -> str | None:
    """Return the precision of products in the training of a checkpoint; None if `auto` is all that it stores."""
    setting = migrate(about.get("config", {})).get("run", {}).get("precision", "auto")
    kept: str | None = about.get("precision", None if setting == "auto" else setting)
    return kept


def versions() -> dict[str, str]:
    """Return the versions of the software that the results depend on."""
    return {
        "pgat_fast": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
