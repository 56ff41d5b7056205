"""What is reported of a finished run."""

import platform
import time
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from pgat_fast import __version__
from pgat_fast.config import Config, config_to_dict
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Splits
from pgat_fast.evaluation.evaluate import compare, evaluate_split

Results: TypeAlias = dict[str, Any]


def build_results(
    config: Config,
    table: Table,
    splits: Splits,
    model: nn.Module,
    initial_validation_loss: float,
    epochs: list[dict[str, Any]],
    best_epoch: int,
    started: float,
) -> Results:
    """Test the best weights, which `model` holds, and put together all that is known of the run: plain types only."""
    settings = config.training
    test = evaluate_split(model, splits.test, settings.batch_size, config.model.mdn_multivariate_mode)
    device = splits.test.values.device
    return {
        "name": config.run.name,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - started,
        "config": config_to_dict(config),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "versions": {
            "pgat_fast": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "data": {
            "path": config.data.path,
            "rows": len(table.dates) - splits.train.first_row,
            "first_date": str(table.dates[splits.train.first_row]),
            "last_date": str(table.dates[-1]),
            "windows": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        },
        "initial_validation_loss": initial_validation_loss,
        "epochs": epochs,
        "best_epoch": best_epoch,
        "best_validation_loss": epochs[best_epoch - 1]["validation_loss"],
        "test_loss": test.loss,
        "test": compare(test, table, splits, config.data),
    }


def _number(value: float | None) -> str:
    return f"{'overflow':>12}" if value is None else f"{value:>12.5f}"


def summary(results: Results) -> str:
    """The results as a few lines of text: errors of the model beside those of the naive baselines."""
    lines = [
        f"{results['name']}: {results['parameters']:,} parameters, epochs {len(results['epochs'])}, "
        f"{results['seconds']:.0f} s on {results['device']}",
        f"best validation loss {results['best_validation_loss']:.5f} in epoch {results['best_epoch']} "
        f"(before training: {results['initial_validation_loss']:.5f})",
    ]
    for units, title in (("scaled", "scaled units"), ("price", "prices")):
        table = results["test"][units]
        if table is None:
            continue
        measures = ("mae", "rmse", "mape") if units == "price" else ("mae", "rmse")
        windows = results["data"]["windows"]["test"]
        lines += ["", f"test, {windows} windows, {title}:"]
        lines.append(f"  {'':<12}" + "".join(f"{name.upper():>12}" for name in measures) + f"{'model skill':>14}")
        for name in ("model", *table["skill"]):
            row = "".join(_number(table[name]["overall"][measure]) for measure in measures)
            against = table["skill"].get(name)
            lines.append(f"  {name:<12}" + row + ("" if against is None else f"{against:>+14.4f}"))
    lines += ["", "skill: 1 - MSE / MSE of the baseline; above 0 the model is better than the baseline."]
    return "\n".join(lines)
