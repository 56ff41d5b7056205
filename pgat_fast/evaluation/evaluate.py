"""Forecast every window of a split and compare with what happened."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgat_fast.config import DataConfig
from pgat_fast.data.columns import TARGETS
from pgat_fast.data.price_units import to_prices
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Splits, Windows, batch_indices
from pgat_fast.evaluation.baselines import naive_forecasts
from pgat_fast.evaluation.metrics import metrics_by_target, skill
from pgat_fast.model.forecast import forecast_loss, point_forecast

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SplitForecast:
    """Forecast and truth of W windows, scaled, [W, P, C] each, and the mean loss of a window."""

    forecast: Array
    truth: Array
    loss: float


@torch.no_grad()
def evaluate_split(model: nn.Module, windows: Windows, batch_size: int, mixture_mode: str) -> SplitForecast:
    """Forecast every window, the last part batch included, in evaluation mode.

    The loss is a mean over windows: it does not depend on `batch_size` beyond rounding.
    """
    model.eval()
    device = windows.values.device
    forecasts, truths, total = [], [], torch.zeros((), dtype=torch.float64, device=device)
    for indices in batch_indices(len(windows), batch_size, drop_last=False, device=device):
        batch = windows.batch(indices)
        forecast, _ = model(*batch[:4])
        total += len(indices) * forecast_loss(forecast, batch.y, mixture_mode)
        forecasts.append(point_forecast(forecast))
        truths.append(batch.y)
    return SplitForecast(_to_numpy(forecasts), _to_numpy(truths), total.item() / len(windows))


def _to_numpy(parts: list[Tensor]) -> Array:
    return torch.cat(parts).double().cpu().numpy()


def compare(result: SplitForecast, table: Table, splits: Splits, data: DataConfig) -> dict[str, Any]:
    """Metrics of the test forecasts and of the naive baselines, scaled and in prices, and the skill against them.

    Returns `{"scaled": {...}, "price": {...} or None}`; each holds, under `model` and the name of each baseline,
    `metrics_by_target`, and under `skill` for each baseline 1 - MSE / MSE of the baseline. Prices come from the four
    standard targets; other targets do not say what a price is.
    """
    scaler, test = splits.target_scaler, splits.test
    targets, pred_len = scaler.columns, test.pred_len
    values = table.values[:, [table.columns.index(name) for name in targets]]
    last_rows = test.first_row + test.seq_len - 1 + np.arange(len(test))
    first = splits.train.first_row
    training_rows = range(first, first + len(splits.train.values))
    naive = naive_forecasts(values, targets, last_rows, pred_len, data.target_kind, training_rows)
    scaled = {"model": result.forecast} | {name: scaler.transform(array) for name, array in naive.items()}
    comparison: dict[str, Any] = {"scaled": _against(scaled, result.truth, targets), "price": None}
    if targets == TARGETS:
        last_close = np.ones(len(test))  # levels need none
        if data.target_kind == "returns":
            last_close = data.base_price * np.exp(np.cumsum(values[:, TARGETS.index("log_Close")]))[last_rows]
        unscaled = {"model": scaler.inverse(result.forecast)} | naive
        truth = values[last_rows[:, None] + np.arange(1, pred_len + 1)]
        with np.errstate(over="ignore"):
            prices = {
                name: to_prices(array, data.target_kind, last_close)
                for name, array in (unscaled | {"truth": truth}).items()
            }
        true_prices = prices.pop("truth")
        comparison["price"] = _against(prices, true_prices, targets)
    return comparison


def _against(forecasts: dict[str, Array], truth: Array, targets: tuple[str, ...]) -> dict[str, Any]:
    tables = {name: metrics_by_target(forecast, truth, targets) for name, forecast in forecasts.items()}
    model = tables["model"]["overall"]["mse"]
    return tables | {
        "skill": {name: skill(model, table["overall"]["mse"]) for name, table in tables.items() if name != "model"}
    }
