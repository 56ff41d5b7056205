"""Results of a finished run: files for people and programs, and a summary for the screen."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from pgat_fast.config import Config, config_to_dict
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Splits
from pgat_fast.evaluation.assessment import assess, write_assessment
from pgat_fast.model import kernel_summary, resolve_backend
from pgat_fast.training.checklist import checklist, checklist_text
from pgat_fast.training.checkpoint import list_checkpoints, verify_checkpoint
from pgat_fast.training.optimizer_step import OptimizerStep
from pgat_fast.training.results_schema import checked
from pgat_fast.training.run_folder import CHECKPOINTS
from pgat_fast.training.run_metadata import versions
from pgat_fast.training.state import Ending, Progress
from pgat_fast.utils.io import write_json

logger = logging.getLogger(__name__)

Results: TypeAlias = dict[str, Any]


def finish_run(
    config: Config,
    table: Table,
    splits: Splits,
    folder: Path,
    step: OptimizerStep,
    progress: Progress,
    ending: Ending,
    *,
    compile_check: dict[str, Any] | None,
    peaks: Callable[[], dict[str, float | None]],
    on_batch: Callable[[], None],
    show_progress: bool,
) -> Results:
    """Evaluate the model of `step`, which has the best weights, on the test windows; write and return the results.

    Writes `forecasts.csv`, `adjacency.csv`, `intervals.json`, `results.json` and, if enabled and possible, `plots/`.

    Args:
        config: the whole configuration, which the results contain.
        table, splits: the data.
        folder: folder of the run.
        step: the model and how it was trained.
        progress: progress of the run.
        ending: outcome of training.
        compile_check: comparison of the first compiled step with an eager one; None if nothing was compiled.
        peaks: returns the highest memory use in GiB; called after the evaluation.
        on_batch: called before every batch; may raise.
        show_progress: show a progress bar if standard error is a terminal.
    """
    model = step.model
    started = time.perf_counter()
    assessment = assess(model, config, table, splits, on_batch=on_batch, progress=show_progress)
    write_assessment(folder, assessment)
    root = folder / CHECKPOINTS
    checkpoints = list_checkpoints(root)
    faults = [f"{path.name}: {fault}" for path in checkpoints for fault in verify_checkpoint(path)]
    epochs = ending.epochs
    results: Results = {
        "name": config.run.name,
        "task": f"daily forecast, {config.model.seq_len} days to the next {config.model.pred_len}",
        "status": "complete" if epochs[-1].complete and len(epochs) == config.training.epochs else "ended early",
        "config": config_to_dict(config),
        "seq_len": config.model.seq_len,
        "pred_len": config.model.pred_len,
        "targets": list(splits.target_scaler.columns),
        "target_count": len(splits.target_scaler.columns),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "started": progress.started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "training_seconds": progress.seconds,
        "resumes": progress.resumes,
        "device": describe_device(step.device),
        "ranks": step.group.size,
        "backend": resolve_backend(config.run.backend),
        "kernels": kernel_summary(model),
        "precision": step.precision,
        "compiled": step.regions != "none",
        "compile_check": compile_check,
        "versions": versions(),
        "data": {
            "path": config.data.path,
            "sha256": table.sha256,
            "rows": len(table.dates) - splits.train.first_row,
            "first_date": str(table.dates[splits.train.first_row]),
            "last_date": str(table.dates[-1]),
            "base_price": _close_before(table, splits.train.first_row, config.data.target_kind),
            "windows": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        },
        "training_ended": ending.reason,
        "initial_validation_loss": progress.initial_validation_loss,
        "epochs": [epoch.to_dict() for epoch in epochs],
        "train_losses": [epoch.train_loss for epoch in epochs],
        "validation_losses": [epoch.validation_loss for epoch in epochs],
        "best_epoch": ending.best_epoch,
        "best_validation_loss": ending.best_loss,
        "test": assessment.test,
        "adversarial": assessment.adversarial,
        "checkpoints": {
            "best": ending.best,
            "latest": checkpoints[-1].name,
            "kept": [path.name for path in checkpoints],
            "verified": not faults,
            "faults": faults,
        },
        "memory": peaks(),
        "evaluation_seconds": time.perf_counter() - started,
    }
    results["checklist"] = checklist(results)
    results = checked(results)
    write_json(folder / "results.json", results)
    if config.run.plots:
        draw(folder)
    return results


def _close_before(table: Table, row: int, kind: str) -> float:
    """Return the close before row `row`; the base price of the table if the columns do not determine it."""
    if "log_Close" not in table.columns or (kind == "levels" and row == 0):
        return table.base_price
    closes = table.select(["log_Close"])[:row, 0]
    return float(np.exp(closes[-1]) if kind == "levels" else table.base_price * np.exp(closes.sum()))


def describe_device(device: torch.device) -> str:
    """Return the name of the GPU, or `cpu` with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def draw(folder: Path) -> None:
    """Draw the plots of the run. Errors are only logged: a failed plot must not lose the results of a long run."""
    if find_spec("matplotlib") is None:
        logger.info('no plots are drawn: matplotlib is not installed (pip install "pgat-fast[plots]")')
        return
    from pgat_fast.report.plots import write_plots

    try:
        write_plots(folder)
    except Exception:
        logger.exception("the plots could not be drawn; all other files were written")


def summary(results: Results) -> str:
    """Return the results as text: losses, errors beside those of the naive baselines, and the checklist."""
    lines = [
        f"{results['name']}: {results['parameters']:,} parameters, epochs {len(results['epochs'])}, "
        f"{results['training_seconds']:.0f} s on {results['device']}",
        f"best validation loss {results['best_validation_loss']:.5f} in epoch {results['best_epoch']} "
        f"(before training: {results['initial_validation_loss']:.5f})",
        test_summary(results["test"]),
        "",
        "checklist:",
        checklist_text(results["checklist"]),
    ]
    return "\n".join(lines)


def test_summary(test: dict[str, Any]) -> str:
    """Return, as text, the errors of the model and of the naive baselines on the test windows, and the skill."""
    lines = []
    prices = "prices in units of the close before the first row" if test["relative_prices"] else "prices"
    for units, title in (("scaled", "scaled units"), ("price", prices)):
        table = test[units]
        if table is None:
            continue
        measures = ("mae", "rmse", "mape") if units == "price" else ("mae", "rmse")
        lines += ["", f"test, {test['windows']} windows, {title}:"]
        lines.append(f"  {'':<12}" + "".join(f"{name.upper():>12}" for name in measures) + f"{'model skill':>14}")
        for name in ("model", *table["skill"]):
            row = "".join(_number(table[name]["overall"][measure]) for measure in measures)
            skill = table["skill"].get(name)
            lines.append(f"  {name:<12}" + row + ("" if skill is None else f"{skill:>+14.4f}"))
    lines += [
        "",
        "skill: 1 - MSE / MSE of the baseline; above 0 the model is better. last_value repeats the last known targets,",
        "zero_return repeats the last close, drift extends it by the mean return of the training rows.",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return f"{'overflow':>12}" if value is None else f"{value:>12.5f}"
