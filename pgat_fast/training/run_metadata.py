"""What a checkpoint says of itself: enough to forecast with it, and to see whether a run can go on from it."""

import platform
from typing import Any

import numpy as np
import torch

from pgat_fast import __version__
from pgat_fast.config import Config, config_to_dict
from pgat_fast.data.table import Table
from pgat_fast.data.trading_days import calendar_of
from pgat_fast.data.windows import Splits
from pgat_fast.model.compilation import Regions


def describe_run(config: Config, table: Table, splits: Splits) -> dict[str, Any]:
    """The part of `Checkpoint.about` that stays the same in all checkpoints of a process: plain JSON."""
    return {
        "config": config_to_dict(config),
        "input_scaler": splits.input_scaler.to_dict(),
        "target_scaler": splits.target_scaler.to_dict(),
        "data": {
            "path": config.data.path,
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
    """Return what of the training was compiled, also from a checkpoint of a version that only says whether."""
    regions: Regions = about.get("compiled_regions", "whole" if about.get("compiled") else "none")
    return regions


def versions() -> dict[str, str]:
    """What the results depend on."""
    return {
        "pgat_fast": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
