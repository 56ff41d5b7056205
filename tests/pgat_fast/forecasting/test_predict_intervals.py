"""Forecasts have the intervals calibrated for their weights, or none and a warning."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

from pgat_fast.config import Config, load_config
from pgat_fast.data.columns import TARGETS
from pgat_fast.data.price_units import to_prices
from pgat_fast.data.prices import PRICES, sp500_prices
from pgat_fast.data.windows import Splits
from pgat_fast.errors import CheckpointError, DataError
from pgat_fast.evaluation.intervals import Intervals, calibrate, price_bounds
from pgat_fast.evaluation.split_forecasts import evaluate_split
from pgat_fast.forecasting.load_run import load_run
from pgat_fast.forecasting.predict import predict
from pgat_fast.training.run import train
from pgat_fast.utils.io import write_json
from tests.pgat_fast.forecasting.small_run import make_run

CHECKPOINT = "step-00000000"
MIXTURE = ("use_mixture_decoder=true", "mdn_components=2")


def calibrated(config: Config, model: nn.Module, splits: Splits, kind: str | None = "returns") -> Intervals:
    mode = config.model.mdn_multivariate_mode
    validation = evaluate_split(model, splits.validation, mode)
    return calibrate(validation, splits.target_scaler, kind=kind, mixture_mode=mode, seed=config.training.seed)


@pytest.fixture
def folder(tiny: list[str], tmp_path: Path) -> Path:
    """Create a run with intervals calibrated on its five validation windows."""
    config, model, _, splits = make_run(tmp_path / "run", tiny)
    write_json(tmp_path / "run" / "intervals.json", calibrated(config, model, splits).to_dict())
    return tmp_path / "run"


def widths(folder: Path, level: int) -> Any:
    return np.array(json.loads((folder / "intervals.json").read_text())["log_price"][level])


def test_prices_have_calibrated_interval_for_each_level(folder: Path, data_file: Path) -> None:
    table = predict(load_run(folder, device="cpu"), data_file)
    assert table.columns.tolist() == [
        "date", "horizon", *PRICES,
        *(f"{name}_{end}_{level}" for name in PRICES for level in (50, 80, 95) for end in ("lower", "upper")),
    ]  # fmt: skip
    for target_index, name in enumerate(PRICES):
        for level_index, level in enumerate((50, 80)):
            factor = np.exp(widths(folder, level_index)[:, target_index])
            np.testing.assert_allclose(table[f"{name}_upper_{level}"], table[name] * factor, rtol=1e-12)
            np.testing.assert_allclose(table[f"{name}_lower_{level}"], table[name] / factor, rtol=1e-12)
    # Five windows are too few for the level of 95 %, which needs 19.
    assert table.filter(like="_95").isna().all(axis=None)
    assert table.attrs["intervals"] == {
        "method": "conformal", "levels": [0.5, 0.8, 0.95], "calibration_windows": 5, "missing": [0.95],
    }  # fmt: skip


def test_levels_are_limited_to_calibrated_ones(folder: Path, data_file: Path) -> None:
    run = load_run(folder, device="cpu")
    all_levels, one_level = predict(run, data_file), predict(run, data_file, levels=[0.8])
    assert one_level.columns.tolist()[6:] == [f"{name}_{end}_80" for name in PRICES for end in ("lower", "upper")]
    pd.testing.assert_frame_equal(one_level, all_levels[one_level.columns])
    with pytest.raises(DataError, match=r"level 0\.9: choose among 0\.5, 0\.8, 0\.95"):
        predict(run, data_file, levels=[0.9])


def test_intervals_of_other_targets_are_in_their_own_units(tiny: list[str], data_file: Path, tmp_path: Path) -> None:
    config, model, _, splits = make_run(tmp_path / "run", [*tiny, "data.targets=log_Close", "model.c_out=1"])
    intervals = calibrated(config, model, splits, kind=None)
    write_json(tmp_path / "run" / "intervals.json", intervals.to_dict())
    table = predict(load_run(tmp_path / "run", device="cpu"), data_file)
    assert intervals.scaled[1] is not None
    half_width = intervals.scaled[1][:, 0] * splits.target_scaler.std[0]
    np.testing.assert_allclose(table["log_Close_upper_80"], table["log_Close"] + half_width, rtol=1e-12)
    np.testing.assert_allclose(table["log_Close_lower_80"], table["log_Close"] - half_width, rtol=1e-12)


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_intervals_of_mixture_equal_evaluation_without_calibration(
    tiny: list[str], data_file: Path, tmp_path: Path, mode: str
) -> None:
    settings = [*tiny, *MIXTURE, f"mdn_multivariate_mode={mode}"]
    config, model, _, splits = make_run(tmp_path / "run", settings)
    rows = splits.test.first_row + config.model.seq_len
    lines = data_file.read_text().splitlines()[: rows + 1]
    (tmp_path / "cut.csv").write_text("\n".join(lines) + "\n")
    closes = sp500_prices()["close"].iloc[-40:].to_numpy()
    run = load_run(tmp_path / "run", device="cpu")
    table = predict(run, tmp_path / "cut.csv", last_close=closes[rows - 1], trading_days="nyse")

    result = evaluate_split(model, splits.test, mode)
    prices = to_prices(splits.target_scaler.inverse(result.forecast), "returns", closes[rows - 1 : -2])
    lower, upper = price_bounds(
        calibrated(config, model, splits), prices, result.mixture,
        scaler=splits.target_scaler, kind="returns", last_close=closes[rows - 1 : -2],
    )  # fmt: skip
    for target_index, name in enumerate(PRICES):
        for level_index, level in enumerate((50, 80, 95)):
            # The same paths are drawn for the first window, so only float64 rounding differs.
            np.testing.assert_allclose(
                table[f"{name}_lower_{level}"], lower[level_index, 0, :, target_index], rtol=1e-12
            )
            np.testing.assert_allclose(
                table[f"{name}_upper_{level}"], upper[level_index, 0, :, target_index], rtol=1e-12
            )
        assert (table[f"{name}_lower_95"] < table[f"{name}_lower_50"]).all()
        assert (table[f"{name}_upper_95"] > table[f"{name}_upper_50"]).all()
    assert table.attrs["intervals"]["method"] == "mixture"


def test_run_without_intervals_warns_how_to_calibrate_them(
    folder: Path, data_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "intervals.json").unlink()
    table = predict(load_run(folder, device="cpu"), data_file)
    assert table.shape == (2, 6)
    assert table.attrs["intervals"] is None
    assert (
        f"no intervals: none are calibrated for checkpoint {CHECKPOINT}; run `pgat-fast evaluate {folder}`"
        in caplog.text
    )


def test_intervals_of_other_checkpoint_are_not_used(folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps({"checkpoints": {"best": "step-00000005"}}))
    assert load_run(folder, device="cpu").intervals is None
    (folder / "results.json").write_text(json.dumps({"checkpoints": {"best": CHECKPOINT}}))
    assert load_run(folder, device="cpu").intervals is not None


def test_intervals_of_evaluation_of_same_checkpoint_are_used(folder: Path) -> None:
    for name in ("step-00000005", CHECKPOINT):
        assert load_run(folder, device="cpu").intervals is not None
        evaluation_folder = folder / f"evaluation-{name}"
        evaluation_folder.mkdir()
        (folder / "intervals.json").rename(evaluation_folder / "intervals.json")
        intervals = load_run(folder, device="cpu").intervals
        assert (intervals is None) == (name != CHECKPOINT)
        if intervals is None:
            (evaluation_folder / "intervals.json").rename(folder / "intervals.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": None}, "not stored intervals"),
        ({"method": "mixture"}, "does not fit this model"),
        ({"log_price": None}, "does not fit this model"),
        ({"scaled": [[[1.0]]] * 3, "log_price": [[[1.0]]] * 3}, "does not fit this model"),
    ],
)
def test_error_for_intervals_that_do_not_fit_model_names_file(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    path = folder / "intervals.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"intervals\.json: .*{message}.*pgat-fast evaluate"):
        load_run(folder, device="cpu")


def test_forecast_of_trained_run_equals_its_table_of_test_forecasts(
    tiny: list[str], data_file: Path, tmp_path: Path
) -> None:
    folder, _ = train(load_config(None, [*tiny, "training.max_steps=2"]), progress=False)
    test_forecasts = pd.read_csv(folder / "forecasts.csv", parse_dates=["origin", "date"])
    origin = test_forecasts["origin"].min()
    lines = [line for line in data_file.read_text().splitlines() if line[:10] <= str(origin.date()) or line[:1] == "d"]
    (tmp_path / "cut.csv").write_text("\n".join(lines) + "\n")
    close = sp500_prices()["close"].loc[origin]
    table = predict(load_run(folder, device="cpu"), tmp_path / "cut.csv", last_close=close, trading_days="nyse")
    for target_index, name in enumerate(PRICES):
        rows = test_forecasts[
            (test_forecasts["origin"] == origin) & (test_forecasts["target"] == TARGETS[target_index])
        ]
        assert table["date"].tolist() == rows["date"].tolist()
        for column, table_column in (
            ("price_forecast", name),
            *((f"price_{end}_80", f"{name}_{end}_80") for end in ("lower", "upper")),
        ):
            # Allow for an evaluation with another batch size, whose float32 sums are in another order.
            np.testing.assert_allclose(table[table_column], rows[column], rtol=1e-6)
