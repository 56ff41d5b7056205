"""The parts of an assessment are consistent with each other and with the files of a run."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from pgat_fast import build_model, load_config
from pgat_fast.config import Config
from pgat_fast.data.bodies import BODIES
from pgat_fast.data.load import load_splits
from pgat_fast.data.table import Table
from pgat_fast.data.windows import Splits
from pgat_fast.errors import StopRequested
from pgat_fast.evaluation.assessment import assess, write_assessment
from pgat_fast.evaluation.intervals import LEVELS, Intervals

# Nine validation windows, enough to calibrate 80 % but too few for 95 %.
SETTINGS = ["data.validation_length=10", "data.base_price=50"]


def prepared(tiny: list[str], *more: str) -> tuple[nn.Module, Config, Table, Splits]:
    config = load_config(None, [*tiny, *SETTINGS, *more])
    table, splits = load_splits(config.data, config.model, torch.device("cpu"))
    torch.manual_seed(0)
    return build_model(config), config, table, splits


def prices(forecasts: pd.DataFrame) -> pd.DataFrame:
    return forecasts.filter(regex="^price")


@pytest.mark.parametrize("mixture", ["false", "true"])
def test_parts_are_consistent_and_json_has_no_nan(tiny: list[str], mixture: str) -> None:
    model, config, table, splits = prepared(tiny, f"use_mixture_decoder={mixture}")
    assessment = assess(model, config, table, splits)
    for part in (assessment.test, assessment.adversarial, assessment.intervals.to_dict()):
        assert json.loads(json.dumps(part, allow_nan=False)) == part
    assert set(assessment.test) == {
        "loss",
        "windows",
        "relative_prices",
        "scaled",
        "price",
        "by_horizon",
        "intervals",
        "mixture",
    }
    assert assessment.test["windows"] == 6
    assert (
        assessment.intervals.method
        == assessment.test["intervals"]["method"]
        == ("mixture" if mixture == "true" else "conformal")
    )
    assert (assessment.test["mixture"] is not None) == (mixture == "true")
    assert [level["nominal"] for level in assessment.test["intervals"]["price"]] == list(LEVELS)
    finite_levels = 3 if mixture == "true" else 2
    for units in ("scaled", "price"):
        shares = [level["coverage"]["overall"] for level in assessment.test["intervals"][units]]
        assert shares[:finite_levels] == sorted(shares[:finite_levels])
        assert shares[finite_levels:] == [None] * (3 - finite_levels)

    rows = assessment.forecasts
    assert len(rows) == 6 * 2 * 4
    assert prices(rows).notna().all().tolist() == [True] * (2 + 2 * finite_levels) + [False] * (6 - 2 * finite_levels)
    assert (rows["price_lower_80"] < rows["price_lower_50"]).all()
    assert (rows["price_lower_50"] < rows["price_upper_50"]).all()
    assert (rows["price_upper_50"] < rows["price_upper_80"]).all()
    error = (rows["price_forecast"] - rows["price_truth"]).abs().mean()
    assert error == pytest.approx(assessment.test["price"]["model"]["overall"]["mae"], rel=1e-9)
    inside = (rows["price_lower_80"] <= rows["price_truth"]) & (rows["price_truth"] <= rows["price_upper_80"])
    assert inside.mean() == pytest.approx(assessment.test["intervals"]["price"][1]["coverage"]["overall"], rel=1e-12)
    for day in (1, 2):
        squares = (rows["price_forecast"] - rows["price_truth"])[rows["horizon"] == day] ** 2
        assert np.sqrt(squares.mean()) == pytest.approx(
            assessment.test["by_horizon"]["price"]["model"][day - 1], rel=1e-9
        )


def test_true_prices_and_dates_match_data_file(tiny: list[str]) -> None:
    model, config, table, splits = prepared(tiny)
    rows = assess(model, config, table, splits).forecasts
    returns = dict(zip(map(str, table.dates), table.select(["log_Close"])[:, 0].tolist(), strict=True))
    closes = dict(zip(returns, (50 * np.exp(np.cumsum(list(returns.values())))).tolist(), strict=True))
    close_rows = rows[rows["target"] == "log_Close"]
    next_day_rows = close_rows[close_rows["horizon"] == 1]
    days = close_rows["date"].dt.strftime("%Y-%m-%d")
    np.testing.assert_allclose(close_rows["price_truth"], days.map(closes), rtol=1e-12)
    assert close_rows["truth"].tolist() == days.map(returns).tolist()
    origins = next_day_rows["origin"].dt.strftime("%Y-%m-%d")
    np.testing.assert_allclose(
        next_day_rows["price_forecast"], origins.map(closes) * np.exp(next_day_rows["forecast"]), rtol=1e-12
    )
    assert days.iloc[-1] == str(table.dates[-1]), "the last window ends with the file"


def test_adjacency_is_mean_over_windows_and_days(tiny: list[str]) -> None:
    model, config, table, splits = prepared(tiny)
    adjacency = assess(model, config, table, splits).adjacency
    with torch.no_grad():
        _, diagnostics = model(*splits.test.batch(torch.arange(6))[:4])
    # float32 products of another batch size.
    np.testing.assert_allclose(adjacency, diagnostics["adjacency"].double().mean(dim=(0, 1)), atol=1e-6)
    assert adjacency.index.tolist() == adjacency.columns.tolist() == list(BODIES)


def test_other_targets_have_no_prices_and_nodes_are_named_after_inputs(tiny: list[str]) -> None:
    inputs = ["log_Open", "log_High", "log_Low", "log_Close", "time_delta"]
    sizes = ["enc_in=5", "dec_in=5", "c_out=2", "use_celestial_graph=false", "graph_processing=attention"]
    model, config, table, splits = prepared(
        tiny, *sizes, f"data.inputs={','.join(inputs)}", "data.targets=log_Close,time_delta"
    )
    assessment = assess(model, config, table, splits)
    assert (
        assessment.test["price"]
        is assessment.test["by_horizon"]["price"]
        is assessment.test["intervals"]["price"]
        is None
    )
    assert prices(assessment.forecasts).isna().all().all()
    assert assessment.adjacency.columns.tolist() == inputs
    assert assessment.intervals.log_price is None


def test_prices_of_levels_are_exponentials(tiny: list[str], tmp_path: Path) -> None:
    from pgat_fast.data.build import build_file

    build_file(tmp_path / "levels.csv", targets="levels", rows=40)
    settings = [f"data.path={tmp_path / 'levels.csv'}", "data.target_kind=levels"]
    for mixture in ("false", "true"):
        model, config, table, splits = prepared(tiny, *settings, f"use_mixture_decoder={mixture}")
        rows = assess(model, config, table, splits).forecasts
        np.testing.assert_allclose(rows["price_truth"], np.exp(rows["truth"]))
        np.testing.assert_allclose(rows["price_forecast"], np.exp(rows["forecast"]))
        assert (rows["price_lower_50"] < rows["price_upper_50"]).all()


def test_written_files_equal_assessment(tiny: list[str], tmp_path: Path) -> None:
    model, config, table, splits = prepared(tiny)
    assessment = assess(model, config, table, splits)
    write_assessment(tmp_path / "out", assessment)
    names = {"forecasts.csv", "adjacency.csv", "intervals.json"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    with (tmp_path / "out" / "forecasts.csv").open(newline="") as file:
        written = [float(row["price_forecast"]) for row in csv.DictReader(file)]
    assert written == assessment.forecasts["price_forecast"].tolist()
    with (tmp_path / "out" / "adjacency.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["", *BODIES]
    assert [row[0] for row in rows] == list(BODIES)
    stored = Intervals.from_dict(json.loads((tmp_path / "out" / "intervals.json").read_text()))
    assert stored.to_dict() == assessment.intervals.to_dict()


@pytest.mark.slow
def test_assessment_is_bitwise_repeatable(tiny: list[str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_assessment(tmp_path / name, assess(*prepared(tiny, "use_mixture_decoder=true")))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_metrics_table_equals_test_results(tiny: list[str]) -> None:
    assessment = assess(*prepared(tiny))
    table = assessment.metrics().set_index(["units", "forecaster", "target"])
    assert len(table) == 2 * 4 * 5
    assert table.loc[("price", "drift", "overall"), "skill"] == assessment.test["price"]["skill"]["drift"]
    assert table.loc[("scaled", "model", "log_High"), "mae"] == assessment.test["scaled"]["model"]["log_High"]["mae"]


def test_nan_weights_are_reported_without_exception(tiny: list[str]) -> None:
    model, config, table, splits = prepared(tiny)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    assessment = assess(model, config, table, splits)
    json.dumps([assessment.test, assessment.adversarial, assessment.intervals.to_dict()], allow_nan=False)
    assert assessment.test["loss"] is None
    assert assessment.test["scaled"]["skill"] == {"last_value": None, "zero_return": None, "drift": None}
    assert {scenario["status"] for scenario in assessment.adversarial["scenarios"].values()} == {"failed"}
    assert assessment.intervals.scaled == (None, None, None)


def test_on_batch_is_called_before_every_batch_and_can_stop(tiny: list[str]) -> None:
    model, config, table, splits = prepared(tiny)
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    assess(model, config, table, splits, on_batch=count)
    # One window per batch: nine validation windows, six test windows, and those six in each of five scenarios.
    assert asked == 9 + 6 + 5 * 6

    def stop() -> None:
        raise StopRequested("SIGTERM")

    with pytest.raises(StopRequested):
        assess(model, config, table, splits, on_batch=stop)
