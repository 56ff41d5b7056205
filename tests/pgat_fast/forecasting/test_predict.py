"""Forecasts of future days equal those of the evaluation, with dates and in prices."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pgat_fast.data.build import build_file
from pgat_fast.data.columns import COLUMNS, TARGETS
from pgat_fast.data.metadata import note_path
from pgat_fast.data.price_units import to_prices
from pgat_fast.data.prices import PRICES, sp500_prices
from pgat_fast.data.table import read_table
from pgat_fast.errors import CheckpointError, ConfigError, DataError
from pgat_fast.evaluation.split_forecasts import evaluate_split
from pgat_fast.forecasting.load_run import Run, load_run
from pgat_fast.forecasting.predict import known_future, predict
from tests.combinations import pairwise_each_value_first
from tests.pgat_fast.forecasting.small_run import make_run

KINDS = ("returns", "levels")


@pytest.fixture(scope="session")
def level_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_file(tmp_path_factory.mktemp("levels") / "levels.csv", targets="levels", rows=40).path


@pytest.fixture
def run(tiny: list[str], tmp_path: Path) -> Run:
    make_run(tmp_path / "run", tiny)
    return load_run(tmp_path / "run", device="cpu")


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    """Write a year of prices in a vendor's format: other column names, another column order, newest first."""
    frame = sp500_prices().iloc[-250:][["close", "open", "low", "high"]].rename(columns=str.title)[::-1]
    frame.to_csv(tmp_path / "prices.csv", index_label="Date")
    return tmp_path / "prices.csv"


def cut(source: Path, rows: int, to: Path) -> Path:
    """Write the first `rows` rows of the data file `source` to `to`, and return `to`."""
    to.write_text("\n".join(source.read_text().splitlines()[: rows + 1]) + "\n")
    return to


@pytest.mark.parametrize(
    ("kind", "combiner", "decoder_future"),
    pairwise_each_value_first(KINDS, ["hierarchical", "batched"], ["zeros", "known"]),
)
def test_forecast_of_test_window_equals_evaluation(
    tiny: list[str], data_file: Path, level_file: Path, tmp_path: Path, kind: str, combiner: str, decoder_future: str
) -> None:
    path = {"returns": data_file, "levels": level_file}[kind]
    settings = [f"data.path={path}", f"target_kind={kind}", f"combiner={combiner}", f"decoder_future={decoder_future}"]
    config, model, table, splits = make_run(tmp_path / "run", [*tiny, *settings])
    run = load_run(tmp_path / "run", device="cpu")
    closes = sp500_prices()["close"].iloc[-40:].to_numpy()
    expected = splits.target_scaler.inverse(evaluate_split(model, splits.test, "").forecast)
    for window in (0, 2, len(splits.test) - 1):
        rows = splits.test.first_row + window + config.model.seq_len
        last_close = closes[rows - 1] if kind == "returns" else None
        forecast = predict(run, cut(path, rows, tmp_path / "cut.csv"), last_close=last_close, trading_days="nyse")
        # These weeks include Thanksgiving and Christmas; the decoder's marks and sky depend on the dates.
        assert np.array_equal(forecast["date"].to_numpy().astype("datetime64[D]"), table.dates[rows : rows + 2])
        forecast_prices = forecast[list(PRICES)].to_numpy()
        # With the same batch size, float32 rounding is identical; only float64 rounding differs.
        np.testing.assert_allclose(forecast_prices, to_prices(expected[window], kind, closes[rows - 1]), rtol=1e-12)


def test_table_has_dates_horizons_prices_and_assumptions(run: Run, data_file: Path) -> None:
    table = predict(run, data_file)
    assert table.columns[:6].tolist() == ["date", "horizon", "open", "high", "low", "close"]
    assert table["horizon"].tolist() == [1, 2]
    # Forty rows are too few to recognise an exchange calendar.
    assert table["date"].dt.strftime("%Y-%m-%d").tolist() == ["2016-01-01", "2016-01-04"]
    assert table.attrs["calendar"] == "weekdays"
    assert table.attrs["last_date"] == "2015-12-31"
    assert table.attrs["checkpoint"] == "step-00000000"
    assert not table.attrs["relative"]
    # Forty returns of ten digits, chained from the close in the note of the data file.
    assert table.attrs["last_close"] == pytest.approx(sp500_prices()["close"].iloc[-1], rel=1e-9)
    assert "from the close 2109.79 before its rows" in table.attrs["last_close_from"]


@pytest.mark.parametrize(("kind", "decoder_future"), pairwise_each_value_first(KINDS, ["zeros", "known"]))
def test_prices_and_data_file_built_from_them_give_same_forecast(
    tiny: list[str], level_file: Path, data_file: Path, prices: Path, tmp_path: Path, kind: str, decoder_future: str
) -> None:
    trained = {"returns": data_file, "levels": level_file}[kind]
    make_run(
        tmp_path / "run", [*tiny, f"data.path={trained}", f"target_kind={kind}", f"decoder_future={decoder_future}"]
    )
    run = load_run(tmp_path / "run", device="cpu")
    built = build_file(tmp_path / "built.csv", prices, kind).path
    from_prices, from_file = predict(run, prices), predict(run, built)
    # The last close is exact in one and derived from 249 returns of ten digits in the other.
    pd.testing.assert_frame_equal(from_prices, from_file, rtol=1e-8)
    assert from_prices.attrs["calendar"] == from_file.attrs["calendar"] == "nyse"
    assert from_prices.attrs["last_close"] == sp500_prices()["close"].iloc[-1]
    assert from_prices["date"].dt.strftime("%Y-%m-%d").tolist() == ["2016-01-04", "2016-01-05"]


def test_frame_and_table_give_same_forecast_as_their_files(run: Run, prices: Path, data_file: Path) -> None:
    pd.testing.assert_frame_equal(predict(run, sp500_prices().iloc[-250:]), predict(run, prices))
    table = replace(read_table(data_file), base_price=2109.79)
    pd.testing.assert_frame_equal(predict(run, table), predict(run, data_file))


def test_only_last_days_affect_forecast(run: Run, prices: Path) -> None:
    from_7_days, from_200_days = (predict(run, sp500_prices().iloc[-days:], trading_days="nyse") for days in (7, 200))
    pd.testing.assert_frame_equal(from_7_days, from_200_days)


def test_known_future_equals_later_rows_of_data_file(data_file: Path) -> None:
    table = read_table(data_file)
    known_columns = [name for name in COLUMNS if name not in TARGETS]
    future = known_future(table.dates[-12:], table.dates[-13], known_columns)
    assert future.columns == tuple(known_columns)
    assert np.array_equal(future.values, table.select(known_columns)[-12:])


@pytest.mark.parametrize(("rows", "message"), [(5, "5 rows are too few"), (1, "1 rows are too few")])
def test_too_few_rows_error_names_number_needed(
    run: Run, data_file: Path, tmp_path: Path, rows: int, message: str
) -> None:
    with pytest.raises(DataError, match=rf"cut\.csv: {message}.*at least 6"):
        predict(run, cut(data_file, rows, tmp_path / "cut.csv"))


def test_too_few_days_of_prices_error_names_number_needed(run: Run) -> None:
    with pytest.raises(DataError, match=r"6 days of prices are too few.*at least 7"):
        predict(run, sp500_prices().iloc[-6:])


def test_returns_without_known_price_give_relative_prices_and_warning(
    run: Run, data_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cut_file = cut(data_file, 30, tmp_path / "cut.csv")
    table = predict(run, cut_file)
    assert table.attrs["relative"]
    assert table.attrs["last_close"] == pytest.approx(1, abs=0.1)
    assert "cut.csv: the close before the first row is unknown" in caplog.text
    absolute = predict(run, cut_file, last_close=2000)
    assert not absolute.attrs["relative"]
    assert absolute.attrs["last_close_from"] == "as given"
    ratio = 2000 / table.attrs["last_close"]
    np.testing.assert_allclose(absolute[list(PRICES)], table[list(PRICES)] * ratio, rtol=1e-12)


def test_base_price_of_run_applies_only_to_its_data_file(tiny: list[str], data_file: Path, tmp_path: Path) -> None:
    training_file = cut(data_file, 40, tmp_path / "own.csv")
    make_run(tmp_path / "run", [*tiny, f"data.path={training_file}", "data.base_price=50"])
    run = load_run(tmp_path / "run", device="cpu")
    growth = np.exp(read_table(training_file).select(["log_Close"]).sum())
    assert predict(run, training_file).attrs["last_close"] == pytest.approx(50 * growth, rel=1e-12)
    assert predict(run, cut(training_file, 39, tmp_path / "cut.csv")).attrs["relative"]
    # The note of another file applies to that file.
    assert note_path(data_file).exists()
    other_file = build_file(tmp_path / "other.csv", rows=20).path
    assert predict(run, other_file).attrs["last_close"] == pytest.approx(sp500_prices()["close"].iloc[-1], rel=1e-9)


@pytest.mark.parametrize("last_close", [0, -3, float("nan"), float("inf")])
def test_invalid_last_close_is_rejected(run: Run, data_file: Path, last_close: float) -> None:
    with pytest.raises(DataError, match="give a positive price"):
        predict(run, data_file, last_close=last_close)


def test_unneeded_last_close_is_ignored_with_warning(
    tiny: list[str], level_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_run(tmp_path / "run", [*tiny, f"data.path={level_file}", "target_kind=levels"])
    run = load_run(tmp_path / "run", device="cpu")
    pd.testing.assert_frame_equal(predict(run, level_file, last_close=5), predict(run, level_file))
    assert "the last close is ignored" in caplog.text


def test_run_on_levels_rejects_returns(tiny: list[str], level_file: Path, data_file: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", [*tiny, f"data.path={level_file}", "target_kind=levels"])
    run = load_run(tmp_path / "run", device="cpu")
    with pytest.raises(DataError, match=r"targets are returns.*but the run was trained on levels"):
        predict(run, data_file)
    with pytest.raises(DataError, match=r"jump from day to day.*but the run was trained on levels"):
        predict(run, cut(data_file, 40, tmp_path / "unnoted.csv"))


def test_targets_other_than_prices_keep_their_units(tiny: list[str], data_file: Path, tmp_path: Path) -> None:
    settings = [*tiny, "data.targets=log_Close", "model.c_out=1"]
    _, model, _, splits = make_run(tmp_path / "run", settings)
    run = load_run(tmp_path / "run", device="cpu")
    rows = len(splits.test) + splits.test.first_row + run.config.model.seq_len - 1
    table = predict(run, cut(data_file, rows, tmp_path / "cut.csv"))
    assert table.columns.tolist() == ["date", "horizon", "log_Close"]
    assert table.attrs["last_close"] is None
    expected = splits.target_scaler.inverse(evaluate_split(model, splits.test, "").forecast)[-1, :, 0]
    np.testing.assert_allclose(table["log_Close"], expected, rtol=1e-12)


def test_custom_columns_do_not_compute_sky(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"2024-01-{day:02d},{day % 3},{day % 7},{1 + day % 2}" for day in range(1, 31)]
    (tmp_path / "own.csv").write_text("\n".join(["date,open,b,time_delta", *rows, ""]))
    sizes = ["use_celestial_graph=false", "enc_in=3", "dec_in=3", "c_out=1", "decoder_future=known"]
    make_run(tmp_path / "run", [*tiny, f"data.path={tmp_path / 'own.csv'}", *sizes])

    def refuse(_: object) -> None:
        raise AssertionError("the sky was asked for")

    monkeypatch.setattr("pgat_fast.forecasting.predict.sky_table", refuse)
    table = predict(load_run(tmp_path / "run", device="cpu"), tmp_path / "own.csv")
    assert table["date"].dt.strftime("%Y-%m-%d").tolist() == ["2024-01-31", "2024-02-01"]
    assert table.attrs["calendar"] == "daily"
    assert np.isfinite(table["open"]).all()


def test_prices_are_rejected_for_custom_columns(tiny: list[str], tmp_path: Path, prices: Path) -> None:
    rows = [f"2024-01-{day:02d},{day % 3},{day % 7}" for day in range(1, 31)]
    (tmp_path / "own.csv").write_text("\n".join(["date,a,b", *rows, ""]))
    sizes = ["use_celestial_graph=false", "enc_in=2", "dec_in=2", "c_out=1"]
    make_run(tmp_path / "run", [*tiny, f"data.path={tmp_path / 'own.csv'}", *sizes])
    with pytest.raises(DataError, match=r"prices\.csv: column a cannot be built from prices"):
        predict(load_run(tmp_path / "run", device="cpu"), prices)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file|does not exist"),
        (b"", "empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"date,open,high,low\n2020-01-01,1,1,1\n", "no column close"),
        (b"date,value\n2020-01-01,1\n", "11 problems"),
        (b"date,open,high,low,close\n2020-01-01,1,1,1,x\n", "line 2, column close"),
        (b"date,open,high,low,close,close\n2020-01-01,1,1,1,1,1\n", "more than one column close"),
        (b'"date\nopen', "header|quotation"),
    ],
)
def test_unreadable_file_is_named_in_error(run: Run, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "odd.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"odd\.csv.*({message})"):
        predict(run, tmp_path / "odd.csv")


def test_unknown_calendar_is_rejected(run: Run, data_file: Path) -> None:
    with pytest.raises(ConfigError, match="'lse': choose auto"):
        predict(run, data_file, trading_days="lse")


class Fixed(nn.Module):
    """Model that forecasts the same scaled values for every window."""

    def __init__(self, forecast: Tensor) -> None:
        super().__init__()
        self.forecast = forecast

    def forward(self, *_: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.forecast, {}


def test_impossible_bars_are_reported_but_not_corrected(
    run: Run, data_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    possible_bars = [[0.0, 0.01, -0.01, 0.0], [0.0, 0.01, -0.01, 0.005]]
    for bars, days in ((possible_bars, []), ([possible_bars[0], [0.0, 0.004, -0.01, 0.005]], ["2016-01-04"])):
        scaled = run.target_scaler.transform(np.array([bars]))
        table = predict(replace(run, model=Fixed(torch.from_numpy(scaled))), data_file)
        assert table.attrs["impossible_bars"] == days
        assert ("1 of 2 forecast days have a high below" in caplog.text) == bool(days)
        expected = table.attrs["last_close"] * np.exp(np.array(bars))
        np.testing.assert_allclose(table[list(PRICES)], expected, rtol=1e-12)


def test_non_finite_forecast_error_names_checkpoint(run: Run, data_file: Path) -> None:
    broken_run = replace(run, model=Fixed(torch.full((1, 2, 4), float("nan"))))
    with pytest.raises(CheckpointError, match="step-00000000: the forecasts are not finite"):
        predict(broken_run, data_file)


def test_predict_is_repeatable_and_keeps_generator_state(run: Run, data_file: Path) -> None:
    run.model.train()  # as a user may do; with dropout, the forecasts would differ
    state = torch.get_rng_state()
    pd.testing.assert_frame_equal(predict(run, data_file), predict(run, data_file))
    assert torch.equal(torch.get_rng_state(), state)


def test_assumptions_are_logged(run: Run, data_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pgat_fast.forecasting"):
        predict(run, data_file)
    assert "'calendar': 'weekdays'" in caplog.text
    assert "2109.79" in caplog.text
