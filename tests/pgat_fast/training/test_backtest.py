"""Rolling-origin backtests: no origin uses data from after it."""

import json
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from pgat_fast import load_config
from pgat_fast.errors import ConfigError, DataError, StopRequested
from pgat_fast.training.backtest import backtest, origin_config, summarize
from tests.pgat_fast.training.runs import StopAt

SHORT = ["training.max_steps=2", "data.validation_length=4", "data.test_length=4"]


@pytest.mark.slow  # whole runs
def test_origins_have_disjoint_test_splits_after_their_training_data(tiny: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*tiny, *SHORT])
    table = backtest(config, tmp_path / "backtest", 3, progress=False)
    assert list(table.index) == [1, 2, 3]
    forecasts = [pd.read_csv(tmp_path / "backtest" / f"origin-{n:02d}" / "forecasts.csv") for n in (1, 2, 3)]
    for newer, older in pairwise(forecasts):
        assert older["date"].max() < newer["date"].min(), "no day is forecast from two origins"
    for number in (1, 2, 3):
        results = json.loads((tmp_path / "backtest" / f"origin-{number:02d}" / "results.json").read_bytes())
        assert results["data"]["last_date"] == forecasts[number - 1]["date"].max()
        assert results["data"]["windows"]["train"] == 40 - 4 * (number - 1) - 8 - 6 - 2 + 1
        assert table.loc[number, "mse_model"] == results["test"]["scaled"]["model"]["overall"]["mse"]
    summary = json.loads((tmp_path / "backtest" / "backtest.json").read_bytes())["summary"]
    assert summary == summarize(table)


def test_summary_equals_hand_computed_values() -> None:
    table = pd.DataFrame({"mse_model": [1.0, 2.0], "mse_drift": [2.0, 2.0], "skill_drift": [0.5, 0.0]})
    assert summarize(table) == {
        "drift": {"pooled": 0.25, "mean": 0.25, "standard_error": 0.25, "positive": 1, "origins": 2, "left_out": 0}
    }
    assert summarize(table.iloc[:1])["drift"]["standard_error"] is None


def test_origin_without_finite_errors_is_left_out_and_counted() -> None:
    table = pd.DataFrame({"mse_model": [1.0, None], "mse_drift": [2.0, 3.0], "skill_drift": [0.5, None]})
    drift = summarize(table)["drift"]
    assert (drift["pooled"], drift["mean"], drift["origins"], drift["left_out"]) == (0.5, 0.5, 1, 1)
    assert summarize(table.iloc[1:])["drift"]["mean"] is None


@pytest.mark.slow  # whole runs
def test_interrupted_backtest_continues_without_repeating_origins(tiny: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*tiny, *SHORT])
    uninterrupted = backtest(config, tmp_path / "whole", 2, progress=False)
    with pytest.raises(StopRequested):
        backtest(config, tmp_path / "stopped", 2, stop=StopAt(38), progress=False)
    finished_origins = sorted(path.parent.name for path in (tmp_path / "stopped").glob("*/results.json"))
    assert finished_origins == ["origin-01"], "stopped in the second"
    mtime = (tmp_path / "stopped" / "origin-01" / "results.json").stat().st_mtime_ns
    resumed = backtest(config, tmp_path / "stopped", 2, progress=False)
    pd.testing.assert_frame_equal(resumed, uninterrupted)
    assert (tmp_path / "stopped" / "origin-01" / "results.json").stat().st_mtime_ns == mtime, "not done again"


def test_too_many_origins_are_rejected_before_any_training(tiny: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*tiny, *SHORT])
    with pytest.raises(DataError, match=r"origin 8 of 9: .*too few.*; ask for fewer origins"):
        backtest(config, tmp_path / "backtest", 9, progress=False)
    assert not (tmp_path / "backtest").exists()
    with pytest.raises(ConfigError, match="0 origins"):
        backtest(config, tmp_path / "backtest", 0, progress=False)


def test_folder_with_backtest_of_other_settings_is_rejected(tiny: list[str], tmp_path: Path) -> None:
    backtest(load_config(None, [*tiny, *SHORT]), tmp_path / "backtest", 1, progress=False)
    with pytest.raises(ConfigError, match="a backtest with other settings is there"):
        backtest(load_config(None, [*tiny, *SHORT, "model.dropout=0.2"]), tmp_path / "backtest", 1, progress=False)


def test_backtest_that_began_with_a_precision_continues_with_it(tiny: list[str], tmp_path: Path) -> None:
    """The default was `highest` in earlier versions."""
    config = load_config(None, [*tiny, *SHORT])
    assert config.run.precision == "auto"
    backtest(load_config(config, ["run.precision=highest"]), tmp_path / "backtest", 1, progress=False)
    backtest(config, tmp_path / "backtest", 2, progress=False)
    stored = load_config(tmp_path / "backtest" / "origin-02" / "config.yaml")
    assert stored.run.precision == "highest"


def test_each_origin_skips_one_more_test_split(tiny: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*tiny, "data.skip_last=2"])
    assert [origin_config(config, tmp_path, n).data.skip_last for n in range(3)] == [2, 9, 16]
