"""Forecasts of all windows of a split and their errors."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgat_fast.data.columns import TARGETS
from pgat_fast.data.price_units import to_prices
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Batch, Splits, Windows, batch_indices
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.evaluation.baselines import naive_forecasts
from pgat_fast.evaluation.metrics import metrics_by_target, rmse_by_horizon, skill
from pgat_fast.model.compilation import eager
from pgat_fast.model.forecast import Diagnostics, Forecast, Mixture, forecast_loss, point_forecast
from pgat_fast.model.numerics import at_least_float32
from pgat_fast.model.precision import products_in

Array = NDArray[np.float64]

EVALUATION_BATCH = 1
"""Batch size wherever metrics are computed, which must not depend on `training.batch_size`.

float32 products differ in the last digits between batch sizes, and divisions by row sums near zero amplify the
difference. It is 1 so that evaluation fits into memory wherever training does.
"""


class MixtureArrays(NamedTuple):
    """A mixture of K normal distributions for every window and forecast day, in scaled units."""

    means: Array
    """[W, P, C, K]"""
    stds: Array
    """[W, P, C, K]"""
    weights: Array
    """[W, P, K], summing to 1 over K."""


@dataclass(frozen=True, eq=False)
class SplitForecast:
    """Forecasts and truth of W windows, in scaled units."""

    forecast: Array
    """[W, P, C]"""
    truth: Array
    """[W, P, C]"""
    loss: float
    """Mean loss over the windows."""
    mixture: MixtureArrays | None
    """None for a point forecast."""
    adjacency: Array
    """[N, N], mean over windows and days."""


@torch.no_grad()
def evaluate_split(
    model: nn.Module,
    windows: Windows,
    mixture_mode: str,
    *,
    on_batch: Callable[[], None] | None = None,
    change: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> SplitForecast:
    """Forecast all windows in evaluation mode, in batches of `EVALUATION_BATCH` and IEEE float32.

    Args:
        model: the forecaster, on the device of `windows`.
        windows: the windows to forecast.
        mixture_mode: `model.mdn_multivariate_mode`.
        on_batch: called before every batch; an exception it raises ends the evaluation.
        change: maps x_enc [B, S, F] and the indices of the windows [B] to a changed history. The decoder receives its
            last days as history; the known future and the calendar stay unchanged.
    """
    model.eval()
    device = windows.values.device
    outputs, truths = [], []
    total = torch.zeros((), dtype=torch.float64, device=device)
    adjacency = torch.zeros((), dtype=torch.float64, device=device)
    for batch, forecast, diagnostics in _forecasts(model, windows, _batches(windows), on_batch, change):
        total += len(batch.y) * forecast_loss(forecast, batch.y, mixture_mode)
        # Accumulate in float64 without a float64 copy of [B, S, N, N], which may be the largest tensor.
        adjacency = adjacency + diagnostics["adjacency"].sum(dim=(0, 1), dtype=torch.float64)
        outputs.append(forecast)
        truths.append(batch.y)
    return SplitForecast(
        forecast=_to_numpy([point_forecast(forecast) for forecast in outputs]),
        truth=_to_numpy(truths),
        loss=total.item() / len(windows),
        mixture=mixture_arrays(outputs),
        adjacency=(adjacency / (len(windows) * windows.seq_len)).cpu().numpy(),
    )


@torch.no_grad()
def mean_loss_of_split(
    model: nn.Module,
    windows: Windows,
    mixture_mode: str,
    *,
    on_batch: Callable[[], None] | None = None,
    group: SingleProcess | None = None,
) -> float:
    """Return `evaluate_split(...).loss`, dividing the windows among the ranks.

    The sum is accumulated in float64 and depends on the number of ranks by rounding only. All ranks call `on_batch`
    equally often, even if some have one batch less.
    """
    group = group or SingleProcess()
    model.eval()
    device = windows.values.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    batches = _batches(windows)
    local_batches = batches[group.rank :: group.size]
    for batch, forecast, _ in _forecasts(model, windows, local_batches, on_batch):
        total += len(batch.y) * forecast_loss(forecast, batch.y, mixture_mode)
    if on_batch is not None and len(local_batches) * group.size < len(batches):
        on_batch()
    total = group.all_reduce_sum(total)
    group.synchronize(total)
    return total.item() / len(windows)


def _batches(windows: Windows) -> list[Tensor]:
    device = windows.values.device
    return list(batch_indices(len(windows), EVALUATION_BATCH, drop_last=False, device=device))


def _forecasts(
    model: nn.Module,
    windows: Windows,
    batches: Iterable[Tensor],
    on_batch: Callable[[], None] | None,
    change: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[tuple[Batch, Forecast, Diagnostics]]:
    """Yield every batch with its forecast and diagnostics, see `evaluate_split`."""
    device = windows.values.device
    for indices in batches:
        if on_batch is not None:
            on_batch()
        batch = windows.batch(indices)
        if change is not None:
            x_enc, x_dec = change(batch.x_enc, indices), batch.x_dec
            x_dec[:, : windows.label_len] = x_enc[:, windows.seq_len - windows.label_len :]
            batch = batch._replace(x_enc=x_enc)
        with products_in("highest", device), eager(model):
            forecast, diagnostics = model(*batch[:4])
        yield batch, forecast, diagnostics


def mixture_arrays(forecasts: list[Forecast]) -> MixtureArrays | None:
    """Concatenate the mixtures of several batches; return None for point forecasts."""
    mixtures = [forecast for forecast in forecasts if isinstance(forecast, Mixture)]
    if not mixtures:
        return None
    return MixtureArrays(
        means=_to_numpy([mixture.means for mixture in mixtures]),
        stds=_to_numpy([at_least_float32(mixture.log_stds).double().exp() for mixture in mixtures]),
        weights=_to_numpy([mixture.log_weights.double().softmax(dim=-1) for mixture in mixtures]),
    )


def _to_numpy(parts: list[Tensor]) -> Array:
    return torch.cat(parts).double().cpu().numpy()


# --- in the units of the targets and in prices ------------------------------------------------------------------------


def target_values(table: Table, targets: tuple[str, ...]) -> Array:
    """Return the unscaled targets of all rows, [n, C]."""
    return table.values[:, [table.columns.index(name) for name in targets]]


def last_rows(windows: Windows) -> NDArray[np.int64]:
    """Return the index of the table row of the last known day of each window, [W]."""
    return windows.first_row + windows.seq_len - 1 + np.arange(len(windows))


def price_base(table: Table, windows: Windows, kind: str) -> Array:
    """Return the last known close of each window, [W], from which returns are chained; 1 if `kind` is `levels`."""
    if kind == "levels":
        return np.ones(len(windows))
    closes = table.values[:, table.columns.index("log_Close")]
    return table.base_price * np.exp(np.cumsum(closes)[last_rows(windows)])


def true_values(table: Table, windows: Windows, targets: tuple[str, ...]) -> Array:
    """Return the unscaled targets of the forecast days, [W, P, C]."""
    days = last_rows(windows)[:, None] + np.arange(1, windows.pred_len + 1)
    return target_values(table, targets)[days]


def compare(result: SplitForecast, table: Table, splits: Splits, kind: str) -> dict[str, Any]:
    """Compute metrics of the test forecasts and of the naive baselines, scaled and in prices, and the skill scores.

    Args:
        result: forecasts of the test windows.
        table: the whole table, with the base price.
        splits: the windows and the scalers.
        kind: kind of the targets, `returns` or `levels`.

    Returns:
        `{"scaled": {...}, "price": {...} or None, "by_horizon": {"scaled": ..., "price": ... or None}}`. The first two
        hold `metrics_by_target` under `model` and the name of each baseline, and under `skill` 1 - MSE / MSE of the
        baseline for each baseline. `by_horizon` holds the RMSE of each forecast day. Prices are computed for the four
        standard targets only; other targets do not define a price.
    """
    scaler, test = splits.target_scaler, splits.test
    targets = scaler.columns
    first_row = splits.train.first_row
    naive = naive_forecasts(
        target_values(table, targets),
        targets,
        last_rows(test),
        test.pred_len,
        kind,
        range(first_row, first_row + len(splits.train.values)),
    )
    scaled = {"model": result.forecast} | {name: scaler.transform(array) for name, array in naive.items()}
    comparison: dict[str, Any] = {
        "scaled": _against(scaled, result.truth, targets),
        "price": None,
        "by_horizon": {"scaled": _by_horizon(scaled, result.truth), "price": None},
    }
    if targets == TARGETS:
        base = price_base(table, test, kind)
        unscaled = {"model": scaler.inverse(result.forecast)} | naive
        with np.errstate(over="ignore"):
            prices = {name: to_prices(array, kind, base) for name, array in unscaled.items()}
            truth = to_prices(true_values(table, test, targets), kind, base)
        comparison["price"] = _against(prices, truth, targets)
        comparison["by_horizon"]["price"] = _by_horizon(prices, truth)
    return comparison


def _against(forecasts: dict[str, Array], truth: Array, targets: tuple[str, ...]) -> dict[str, Any]:
    tables = {name: metrics_by_target(forecast, truth, targets) for name, forecast in forecasts.items()}
    model = tables["model"]["overall"]["mse"]
    return tables | {
        "skill": {name: skill(model, table["overall"]["mse"]) for name, table in tables.items() if name != "model"}
    }


def _by_horizon(forecasts: dict[str, Array], truth: Array) -> dict[str, list[float | None]]:
    return {name: rmse_by_horizon(forecast, truth) for name, forecast in forecasts.items()}
