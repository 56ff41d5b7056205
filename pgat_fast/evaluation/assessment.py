"""Evaluation of a model on the test windows: errors, baselines, intervals, diagnostics and tables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from pgat_fast.config import Config
from pgat_fast.data.bodies import BODIES
from pgat_fast.data.columns import TARGETS
from pgat_fast.data.price_units import to_prices
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Splits
from pgat_fast.evaluation.adversarial import SCENARIOS, run_adversarial
from pgat_fast.evaluation.intervals import Bounds, Intervals, calibrate, interval_report, price_bounds, scaled_bounds
from pgat_fast.evaluation.metrics import finite
from pgat_fast.evaluation.probabilistic import mixture_report
from pgat_fast.evaluation.split_forecasts import (
    EVALUATION_BATCH,
    compare,
    evaluate_split,
    last_rows,
    price_base,
    true_values,
)
from pgat_fast.utils.io import write_atomically, write_json

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Assessment:
    """Results of `assess`."""

    test: dict[str, Any]
    """The `test` section of `results.json`, see `training.results_schema.TestRecord`."""
    adversarial: dict[str, Any]
    """See `run_adversarial`."""
    intervals: Intervals
    forecasts: pd.DataFrame
    """See `forecast_table`."""
    adjacency: pd.DataFrame
    """Mean adjacency [N, N], with rows (receiving nodes) and columns labelled by node name."""

    def metrics(self) -> pd.DataFrame:
        """Return the errors as a table with a row per unit (scaled, price), forecaster and target.

        `skill` is that of the model against the forecaster of the row, given for the `overall` target only.
        """
        rows = []
        for units in ("scaled", "price"):
            section = self.test[units]
            for name in () if section is None else ("model", *section["skill"]):
                for target, measures in section[name].items():
                    skill = section["skill"].get(name) if target == "overall" else None
                    rows.append({"units": units, "forecaster": name, "target": target, **measures, "skill": skill})
        return pd.DataFrame(rows)


def assess(
    model: nn.Module,
    config: Config,
    table: Table,
    splits: Splits,
    *,
    on_batch: Callable[[], None] | None = None,
    progress: bool = False,
) -> Assessment:
    """Evaluate `model`, which is on the device of `splits`, on the test windows.

    Only the intervals use the validation windows: they are calibrated on them. `on_batch` is called before every batch;
    an exception it raises ends the assessment. `progress` shows a progress bar if standard error is a terminal.
    """
    scaler, test = splits.target_scaler, splits.test
    targets, kind = scaler.columns, config.data.target_kind
    mode, seed = config.model.mdn_multivariate_mode, config.training.seed
    window_counts = [len(splits.validation), len(test), *[len(test)] * len(SCENARIOS)]
    bar = tqdm(
        total=sum(math.ceil(windows / EVALUATION_BATCH) for windows in window_counts),
        desc="evaluation",
        unit="batch",
        disable=None if progress else True,
    )

    def next_batch() -> None:
        if on_batch is not None:
            on_batch()
        bar.update()

    validation = evaluate_split(model, splits.validation, mode, on_batch=next_batch)
    result = evaluate_split(model, test, mode, on_batch=next_batch)
    adversarial = run_adversarial(model, test, mode, targets, seed=seed, clean=result, on_batch=next_batch)
    bar.close()
    in_prices = targets == TARGETS
    intervals = calibrate(validation, scaler, kind=kind if in_prices else None, mixture_mode=mode, seed=seed)

    forecast, truth = scaler.inverse(result.forecast), true_values(table, test, targets)
    prices, price_coverage = None, None
    if in_prices:
        base = price_base(table, test, kind)
        with np.errstate(over="ignore"):
            price_forecast, price_truth = to_prices(forecast, kind, base), to_prices(truth, kind, base)
            bounds = price_bounds(intervals, price_forecast, result.mixture, scaler=scaler, kind=kind, last_close=base)
        prices, price_coverage = (price_forecast, price_truth, bounds), (bounds, price_truth)
    scaled_coverage = (scaled_bounds(intervals, result.forecast, result.mixture), result.truth)
    mixture = None
    if result.mixture is not None:
        mixture = mixture_report(result.mixture, result.truth, mode, targets, intervals.levels)
    nodes = pd.Index(BODIES if config.model.use_celestial_graph else splits.input_scaler.columns)
    return Assessment(
        test={
            "loss": finite(result.loss),
            "windows": len(test),
            "relative_prices": in_prices and kind == "returns" and table.base_price == 1.0,
            **compare(result, table, splits, kind),
            "intervals": interval_report(intervals, scaled_coverage, price_coverage, targets),
            "mixture": mixture,
        },
        adversarial=adversarial,
        intervals=intervals,
        forecasts=forecast_table(table.dates, last_rows(test), targets, forecast, truth, prices, intervals.levels),
        adjacency=pd.DataFrame(result.adjacency, index=nodes, columns=nodes),
    )


def forecast_table(
    dates: NDArray[np.datetime64],
    rows: NDArray[np.int64],
    targets: Sequence[str],
    forecast: Array,
    truth: Array,
    prices: tuple[Array, Array, Bounds] | None,
    levels: Sequence[float],
) -> pd.DataFrame:
    """Return a table of forecasts with a row for each window, forecast day and target.

    Args:
        dates: dates of all rows of the data, [n].
        rows: index of the last known row of each window, [W].
        targets: C names.
        forecast, truth: in the units of the targets, [W, P, C].
        prices: forecast and true prices [W, P, C] and the interval bounds [levels, W, P, C]; None if the targets are
            not prices.
        levels: nominal coverage of each interval, as a fraction.

    Returns:
        The columns `origin` (the last known day), `date` (the forecast day), `horizon` (from 1), `target`, `forecast`,
        `truth`, `price_forecast`, `price_truth`, and for each level columns such as `price_lower_80` and
        `price_upper_80`. The price columns are NaN if `prices` is None.
    """
    index = pd.MultiIndex.from_product([rows, range(1, forecast.shape[1] + 1), targets])
    origin, horizon, target = (index.get_level_values(level) for level in range(3))
    missing = np.full(forecast.shape, np.nan)
    price_forecast, price_truth, bounds = prices or (missing, missing, ([missing] * len(levels),) * 2)
    columns = {
        "origin": dates[origin],
        "date": dates[origin + horizon],
        "horizon": horizon,
        "target": target,
        "forecast": forecast.ravel(),
        "truth": truth.ravel(),
        "price_forecast": price_forecast.ravel(),
        "price_truth": price_truth.ravel(),
    }
    for level, lower, upper in zip(levels, *bounds, strict=True):
        columns[f"price_lower_{100 * level:g}"] = lower.ravel()
        columns[f"price_upper_{100 * level:g}"] = upper.ravel()
    return pd.DataFrame(columns)


def write_assessment(folder: Path, assessment: Assessment) -> None:
    """Write `forecasts.csv`, `adjacency.csv` and `intervals.json` into `folder`."""
    write_atomically(folder / "forecasts.csv", assessment.forecasts.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(folder / "adjacency.csv", assessment.adjacency.to_csv(lineterminator="\n").encode())
    write_json(folder / "intervals.json", assessment.intervals.to_dict())
