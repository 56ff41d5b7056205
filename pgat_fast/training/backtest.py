"""Rolling-origin backtest: the same run from several points in time, each trained on the data known then.

The windows of one test split overlap and cover one period of the market, so they are weak evidence. A backtest moves
the test split back in time, block by block, and trains a new model before each block (Tashman, Out-of-sample tests of
forecasting accuracy, 2000; Hyndman & Athanasopoulos, Forecasting: Principles and Practice, section 5.10).
"""

import json
import logging
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pgat_fast.config import Config, load_config, with_precision_of
from pgat_fast.data.load import load_splits
from pgat_fast.errors import ConfigError, DataError
from pgat_fast.training.checkpoint import list_checkpoints
from pgat_fast.training.run import train
from pgat_fast.training.run_folder import CHECKPOINTS, finished_results, locked
from pgat_fast.training.signals import Stop
from pgat_fast.utils.io import write_json

logger = logging.getLogger(__name__)


def backtest(
    config: Config, folder: Path, origins: int, *, stop: Stop | None = None, progress: bool = True
) -> pd.DataFrame:
    """Train and test from `origins` points in time; the newest has the test split of `config`.

    The test splits are consecutive blocks of `data.test_length` rows without overlap. Each training is a whole run in
    `folder` (`origin-01` is the newest). Finished runs are kept and stopped ones are resumed, so a second call
    continues an interrupted backtest. The rows and the result of `summarize` are written to `backtest.json` in
    `folder`.

    Returns:
        A row for each origin: its test days and, in units of the scaled targets, the mean squared error of the model
        and of each naive baseline, and the skill.

    Raises:
        DataError: the file is too short for this number of origins; nothing was trained.
        ConfigError: `folder` contains another backtest.
    """
    if origins < 1:
        raise ConfigError(f"{origins} origins: choose 1 or more")
    first = folder / "origin-01" / "config.yaml"
    if first.is_file():
        config = with_precision_of(load_config(first), config)
    runs = [origin_config(config, folder, number) for number in range(origins)]
    sha256 = _check_rows(config, origins)
    rows = []
    for number, run in enumerate(runs):
        logger.info("backtest: origin %d of %d", number + 1, origins)
        results = _finished(run, sha256) or _train(run, stop, progress)
        rows.append(_row(number + 1, results))
    table = pd.DataFrame(rows).set_index("origin")
    write_json(folder / "backtest.json", {"origins": rows, "summary": summarize(table)})
    return table


def origin_config(config: Config, folder: Path, number: int) -> Config:
    """Return the configuration of the run from origin `number` (from 0, the newest)."""
    skip = config.data.skip_last + number * config.data.test_length
    return load_config(
        config,
        [
            f"data.skip_last={skip}",
            f"run.output={json.dumps(str(folder))}",
            f"run.name=origin-{number + 1:02d}",
            "run.plots=false",
        ],
    )


def summarize(table: pd.DataFrame) -> dict[str, Any]:
    """Return the skill against each baseline over all origins.

    `pooled` is 1 - sum of the model's MSE / sum of the baseline's MSE. `mean` and `standard_error` are those of the
    skills of single origins, None if there are too few; `positive` counts the origins where the model was better, and
    `left_out` those whose errors are not finite.
    """
    summary: dict[str, Any] = {}
    for column in table.columns:
        name = str(column).removeprefix("mse_")
        if name == column or name == "model":
            continue
        finite_rows = table[["mse_model", column, f"skill_{name}"]].dropna().astype(float)
        skills = finite_rows[f"skill_{name}"].tolist()
        enough = len(skills) > 1
        summary[name] = {
            "pooled": 1 - float(finite_rows["mse_model"].sum() / finite_rows[column].sum()) if skills else None,
            "mean": statistics.fmean(skills) if skills else None,
            "standard_error": statistics.stdev(skills) / math.sqrt(len(skills)) if enough else None,
            "positive": sum(skill > 0 for skill in skills),
            "origins": len(skills),
            "left_out": len(table) - len(skills),
        }
    return summary


def _check_rows(config: Config, origins: int) -> str:
    """Check before any training that the oldest origin has enough rows; return the sha256 of the data file."""

    def load(number: int) -> str:
        data = config.data.model_copy(update={"skip_last": config.data.skip_last + number * config.data.test_length})
        return load_splits(data, config.model, torch.device("cpu"))[0].sha256

    try:
        return load(origins - 1)  # the oldest has the fewest rows
    except (ConfigError, DataError):
        for number in range(origins):
            try:
                load(number)
            except (ConfigError, DataError) as error:
                raise DataError(f"origin {number + 1} of {origins}: {error}; ask for fewer origins") from error
        raise


def _finished(run: Config, sha256: str) -> dict[str, Any] | None:
    """Return the results of a finished origin, otherwise None. Raise ConfigError if another backtest is there."""
    folder = Path(run.run.output) / run.run.name
    if not (folder / "config.yaml").is_file():
        return None
    stored_config = load_config(folder / "config.yaml")
    settings = [(c.data, c.model, c.training, c.run.precision, c.run.exact_dropout) for c in (stored_config, run)]
    if settings[0] != settings[1]:
        raise ConfigError(f"{folder}: a backtest with other settings is there; move it away, or restore its settings")
    results = finished_results(folder)
    if results is not None and results["data"]["sha256"] != sha256:
        raise ConfigError(f"{folder}: a backtest of other data is there; move it away, or restore the data file")
    return results


def _train(run: Config, stop: Stop | None, progress: bool) -> dict[str, Any]:
    folder = Path(run.run.output) / run.run.name
    resume = folder if list_checkpoints(folder / CHECKPOINTS) else None
    if resume is None and folder.exists():  # stopped before its first checkpoint: nothing to resume
        with locked(folder):
            shutil.rmtree(folder)
    _, results = train(run, resume=resume, stop=stop, progress=progress)
    return results


def _row(origin: int, results: dict[str, Any]) -> dict[str, Any]:
    scaled = results["test"]["scaled"]
    row: dict[str, Any] = {
        "origin": origin,
        "last_date": results["data"]["last_date"],
        "windows": results["test"]["windows"],
        "best_epoch": results["best_epoch"],
        "mse_model": scaled["model"]["overall"]["mse"],
    }
    row |= {f"mse_{name}": scaled[name]["overall"]["mse"] for name in scaled["skill"]}
    return row | {f"skill_{name}": skill for name, skill in scaled["skill"].items()}
