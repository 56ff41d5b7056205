"""Forecasts and metrics of a split do not depend on the batch size, and prices follow from the forecasts."""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from pgat_fast import build_model, load_config
from pgat_fast.config import Config
from pgat_fast.data.build import build_file
from pgat_fast.data.columns import TARGETS
from pgat_fast.data.load import load_splits
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Splits
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.evaluation import split_forecasts
from pgat_fast.evaluation.split_forecasts import (
    EVALUATION_BATCH,
    SplitForecast,
    compare,
    evaluate_split,
    last_rows,
    mean_loss_of_split,
    price_base,
    true_values,
)
from pgat_fast.model.precision import products_in


def load(tiny: list[str], *settings: str) -> tuple[Config, Table, Splits]:
    config = load_config(None, [*tiny, *settings])
    return config, *load_splits(config.data, config.model, torch.device("cpu"))


@pytest.mark.parametrize("mixture", [False, True])
def test_forecasts_and_loss_do_not_depend_on_batch_size(
    tiny: list[str], mixture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _, splits = load(tiny, f"use_mixture_decoder={str(mixture).lower()}")
    torch.manual_seed(0)
    model = build_model(config)
    results = []
    for size in (6, 1, 4):
        monkeypatch.setattr(split_forecasts, "EVALUATION_BATCH", size)
        results.append(evaluate_split(model, splits.test, "independent"))
    one_batch, *others = results
    for other in others:
        assert other.loss == pytest.approx(one_batch.loss, rel=1e-6)  # float32 sums in another order
        assert np.abs(other.forecast - one_batch.forecast).max() < 1e-5
        assert (other.truth == one_batch.truth).all()
        # Means over the same numbers; rows of the adjacency sum to about 1.
        assert np.abs(other.adjacency - one_batch.adjacency).max() < 1e-6
        assert (other.mixture is None) != mixture
    assert one_batch.forecast.shape == (6, 2, 4)
    if not mixture:
        assert one_batch.loss == pytest.approx(float(((one_batch.forecast - one_batch.truth) ** 2).mean()), rel=1e-6)


def test_ranks_divide_the_windows_and_call_on_batch_equally_often(tiny: list[str]) -> None:
    config = load_config(None, tiny)
    windows = load_splits(config.data, config.model, torch.device("cpu"))[1].validation
    model = build_model(config).eval()
    losses, calls = [], []
    for rank in range(3):
        group = SingleProcess()
        group.rank, group.size = rank, 3
        called: list[int] = []
        losses.append(
            mean_loss_of_split(
                model, windows, "independent", group=group, on_batch=lambda called=called: called.append(1)
            )
        )
        calls.append(len(called))
    batches = -(-len(windows) // EVALUATION_BATCH)
    assert batches % 3 != 0, "some ranks have a batch less"
    assert calls == [-(-batches // 3)] * 3
    assert sum(losses) == pytest.approx(mean_loss_of_split(model, windows, "independent"), rel=1e-9)


def test_results_do_not_depend_on_precision_set_by_caller(tiny: list[str]) -> None:
    config, _, splits = load(tiny)
    torch.manual_seed(0)
    model = build_model(config)
    plain = evaluate_split(model, splits.test, "independent")
    with products_in("bf16", torch.device("cpu")):
        rounded = evaluate_split(model, splits.test, "independent")
    with products_in("high", torch.device("cpu")):
        high = evaluate_split(model, splits.test, "independent")
    for other in (rounded, high):
        assert other.loss == plain.loss
        assert (other.forecast == plain.forecast).all()


def of(forecast: np.ndarray, truth: np.ndarray) -> SplitForecast:
    """Return a split forecast with `forecast` and `truth` and placeholders for the other fields."""
    return SplitForecast(forecast, truth, 0.0, None, np.zeros((13, 13)))


@pytest.mark.parametrize("kind", ["returns", "levels"])
def test_perfect_forecast_has_zero_error_and_full_skill(
    tiny: list[str], tmp_path: Path, kind: Literal["returns", "levels"]
) -> None:
    build_file(tmp_path / "file.csv", targets=kind, rows=40)
    settings = [f"data.target_kind={kind}", f"data.path={tmp_path / 'file.csv'}"]
    config, table, splits = load(tiny, *settings, "data.base_price=50")
    values = table.values[:, :4]
    last_rows = np.arange(40 - 7 - 1, 40 - 2)  # last row of the history of each test window
    truth = splits.target_scaler.transform(np.stack([values[row + 1 : row + 3] for row in last_rows]))
    comparison = compare(of(truth, truth), table, splits, config.data.target_kind)
    for units in ("scaled", "price"):
        assert comparison[units]["model"]["overall"]["mae"] < 1e-12
        assert comparison[units]["zero_return"]["overall"]["mae"] > 1e-4
        assert all(skill == pytest.approx(1) for skill in comparison[units]["skill"].values())
        assert set(comparison[units]["model"]) == {"overall", *TARGETS}


def test_price_error_of_zero_return_matches_closes(tiny: list[str]) -> None:
    config, table, splits = load(tiny, "data.base_price=50")
    closes = 50 * np.exp(np.cumsum(table.values[:, 3]))  # log_Close is the log return of the close
    last_rows = np.arange(40 - 7 - 1, 40 - 2)
    errors = [abs(closes[row + day] - closes[row]) for row in last_rows for day in (1, 2)]
    model = of(np.zeros((6, 2, 4)), np.zeros((6, 2, 4)))
    mae = compare(model, table, splits, config.data.target_kind)["price"]["zero_return"]["log_Close"]["mae"]
    assert mae == pytest.approx(float(np.mean(errors)), rel=1e-9)


def test_prices_do_not_depend_on_number_of_rows_used(tiny: list[str]) -> None:
    tables = []
    for extra_settings in ([], ["data.rows=36"]):
        config = load_config(None, [*tiny, *extra_settings, "data.base_price=50"])
        table, splits = load_splits(config.data, config.model, torch.device("cpu"))
        assert len(splits.train.values) == (23 if extra_settings else 27)
        model = of(np.zeros((6, 2, 4)), np.zeros((6, 2, 4)))
        tables.append(compare(model, table, splits, config.data.target_kind)["price"])
    assert tables[0]["zero_return"] == tables[1]["zero_return"]
    assert tables[0]["drift"] != tables[1]["drift"], "estimated on fewer training rows"


def test_metrics_of_overflowing_prices_are_none(tiny: list[str]) -> None:
    config, table, splits = load(tiny)
    overflowing = of(np.full((6, 2, 4), 1e6), np.zeros((6, 2, 4)))
    metrics = compare(overflowing, table, splits, config.data.target_kind)["price"]
    assert metrics["model"]["overall"]["mae"] is None
    assert metrics["skill"] == {"last_value": None, "zero_return": None, "drift": None}
    assert metrics["drift"]["overall"]["mae"] is not None


def test_long_file_of_levels_does_not_overflow(tiny: list[str], tmp_path: Path) -> None:
    build_file(tmp_path / "levels.csv", targets="levels", rows=120)  # the sum of the logarithms exceeds 709
    config, table, splits = load(tiny, f"data.path={tmp_path / 'levels.csv'}", "data.target_kind=levels")
    result = of(np.zeros((6, 2, 4)), np.zeros((6, 2, 4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = compare(result, table, splits, config.data.target_kind)["price"]
    assert metrics["zero_return"]["overall"]["mape"] < 0.05


def test_mixture_arrays_hold_means_stds_and_weights(tiny: list[str]) -> None:
    config, _, splits = load(tiny, "use_mixture_decoder=true")
    model = build_model(config).eval()
    result = evaluate_split(model, splits.test, "independent")
    with torch.no_grad():
        forecast, _ = model(*splits.test.batch(torch.arange(6))[:4])
    assert result.mixture is not None
    means, stds, weights = result.mixture
    assert means.shape == stds.shape == (6, 2, 4, 3)
    # float32 products of another batch size.
    np.testing.assert_allclose(means, forecast.means, atol=1e-5)
    np.testing.assert_allclose(stds, forecast.log_stds.exp(), rtol=1e-5)
    np.testing.assert_allclose(weights, forecast.log_weights.softmax(dim=-1), atol=1e-6)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose((means * weights[:, :, None]).sum(axis=-1), result.forecast, atol=1e-5)


def test_rmse_by_horizon_matches_known_errors(tiny: list[str]) -> None:
    _, table, splits = load(tiny)
    truth = splits.target_scaler.transform(true_values(table, splits.test, TARGETS))
    errors = np.zeros_like(truth)
    errors[:, 0, 0], errors[:3, 1, :] = 2.0, 1.0
    by_horizon = compare(of(truth + errors, truth), table, splits, "returns")["by_horizon"]
    assert by_horizon["scaled"]["model"] == pytest.approx([1.0, 0.5**0.5])
    assert by_horizon["scaled"]["zero_return"][1] == pytest.approx(
        float(np.sqrt(np.mean((splits.target_scaler.transform(np.zeros(4)) - truth[:, 1]) ** 2)))
    )
    assert set(by_horizon["price"]) == {"model", "last_value", "zero_return", "drift"}
    assert all(len(days) == 2 for days in by_horizon["price"].values())


def test_price_base_is_last_known_close(tiny: list[str]) -> None:
    _, table, splits = load(tiny, "data.base_price=50")
    assert last_rows(splits.test).tolist() == list(range(32, 38))
    base = price_base(table, splits.test, "returns")
    growth = [table.select(["log_Close"])[: row + 1].sum() for row in range(32, 38)]
    np.testing.assert_allclose(base, 50 * np.exp(growth), rtol=1e-12)
    assert price_base(table, splits.test, "levels").tolist() == [1.0] * 6


def test_true_values_are_rows_after_each_window(tiny: list[str]) -> None:
    _, table, splits = load(tiny)
    values = true_values(table, splits.test, TARGETS)
    assert np.array_equal(values[2, 1], table.select(TARGETS)[34 + 2])
    truth = splits.test.batch(torch.arange(6)).y
    np.testing.assert_allclose(splits.target_scaler.transform(values), truth, atol=1e-6)  # float32
