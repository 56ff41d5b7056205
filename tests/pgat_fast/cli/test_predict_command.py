"""The command `pgat-fast predict`."""

import json
import logging
import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pgat_fast.cli import main
from pgat_fast.data.prices import PRICES
from pgat_fast.evaluation.intervals import Intervals
from pgat_fast.forecasting.load_run import load_run
from pgat_fast.forecasting.predict import predict
from pgat_fast.utils.io import write_json
from tests.pgat_fast.forecasting.small_run import make_run


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Remove the handlers that a command leaves on the root logger."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = before, level


@pytest.fixture
def run(tiny: list[str], tmp_path: Path) -> Path:
    make_run(tmp_path / "run", tiny)
    return tmp_path / "run"


def predict_command(run: Path, source: Path, out: Path | str, *more: str) -> int:
    return main(["predict", str(run), "--from", str(source), "--out", str(out), "--device", "cpu", *more])


def test_table_is_written_and_printed_with_assumptions(
    run: Path,
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "new" / "forecast.csv"
    assert predict_command(run, data_file, out) == 0
    expected = predict(load_run(run, device="cpu"), data_file)
    table = pd.read_csv(out, parse_dates=["date"])
    assert table.columns.tolist() == expected.columns.tolist()
    assert table["date"].tolist() == expected["date"].tolist()
    # The file has ten significant digits.
    np.testing.assert_allclose(table[list(PRICES)], expected[list(PRICES)], rtol=1e-9)
    printed = capsys.readouterr().out
    assert "Fri 2016-01-01        1 " in printed
    assert f"{expected['close'][0]:.2f}" in printed
    assert "checkpoint step-00000000; last known day 2015-12-31" in printed
    assert "calendar weekdays" in printed
    assert "last close 2043.94" in printed
    assert "Daily prices are nearly unpredictable. This run has not been tested" in printed
    assert f"`pgat-fast evaluate {run}`" in caplog.text
    assert f"written to {out}: 2 days, 6 columns" in printed


def test_skill_of_tested_run_is_printed(
    run: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skill = {"last_value": 0.47, "zero_return": -0.0123, "drift": None}
    test = {"windows": 6, "scaled": {"skill": {}}, "price": {"skill": skill}}
    (run / "results.json").write_text(json.dumps({"test": test}))
    assert predict_command(run, data_file, tmp_path / "out.csv") == 0
    printed = capsys.readouterr().out
    assert (
        "Skill of step-00000000 on 6 test windows, price units: last_value +0.4700, zero_return -0.0123, drift unknown"
        in printed
    )


def test_one_interval_is_printed_and_all_are_written_with_coverage(
    run: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    widths = [np.full((2, 4), width) for width in (0.01, 0.02)]
    intervals = Intervals("conformal", (0.5, 0.8, 0.95), 5, (*widths, None), (*widths, None))
    write_json(run / "intervals.json", intervals.to_dict())
    coverages = [
        {"nominal": level, "coverage": {"overall": share}} for level, share in ((0.5, 0.46), (0.8, 0.75), (0.95, None))
    ]
    (run / "results.json").write_text(json.dumps({"test": {"intervals": {"price": coverages}}}))
    assert predict_command(run, data_file, tmp_path / "out.csv") == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["date", "horizon", *PRICES, "close_lower_80", "close_upper_80"]
    assert (
        "conformal, from the errors on 5 validation windows; coverage on the test windows: 46 % for 50 %, 75 % for "
        "80 %; too few validation windows for 95 %\n" in printed
    )
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.shape == (2, 2 + 4 + 24)
    assert table["open_upper_95"].isna().all()  # no finite interval: the cell is empty


def test_standard_output_holds_only_table(
    run: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert predict_command(run, data_file, "-") == 0
    captured = capsys.readouterr()
    table = pd.read_csv(StringIO(captured.out))
    assert table["date"].tolist() == ["2016-01-01", "2016-01-04"]
    assert "calendar weekdays" in captured.err
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_options_are_applied_to_forecast(
    run: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    options = ["--last-close", "100", "--trading-days", "daily", "--checkpoint", "latest"]
    assert predict_command(run, data_file, out, *options) == 0
    table = pd.read_csv(out)
    assert table["date"].tolist() == ["2016-01-01", "2016-01-02"]
    assert "last close 100, as given" in capsys.readouterr().out
    assert predict_command(run, data_file, out, "--set", "data.trading_days=nyse") == 0
    assert pd.read_csv(out)["date"].tolist() == ["2016-01-04", "2016-01-05"]


def test_relative_prices_are_marked_and_printed_with_five_decimals(
    run: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unnoted.csv").write_bytes(data_file.read_bytes().rsplit(b"\n", 2)[0] + b"\n")
    assert predict_command(run, tmp_path / "unnoted.csv", tmp_path / "out.csv") == 0
    captured = capsys.readouterr()
    assert "RELATIVE prices" in captured.out
    assert f"{pd.read_csv(tmp_path / 'out.csv')['close'][0]:.5f}" in captured.out


def test_input_is_not_overwritten(
    run: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "data.csv"
    source.write_bytes(data_file.read_bytes())
    (tmp_path / "link.csv").symlink_to(source)
    for out in (source, tmp_path / "link.csv"):
        assert predict_command(run, source, out) == 2
        assert "this is the input file" in capsys.readouterr().err
    assert source.read_bytes() == data_file.read_bytes()


def test_unwritable_output_is_wrong_input(
    run: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict_command(run, data_file, data_file / "out.csv") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert predict_command(run, data_file, tmp_path) == 2
    assert "not a file name" in capsys.readouterr().err


def test_missing_run_or_source_is_wrong_input(
    run: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    assert predict_command(tmp_path / "nowhere", data_file, out) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nowhere'}: there is no such folder")
    assert predict_command(run, tmp_path / "nowhere.csv", out) == 2
    assert "nowhere.csv" in capsys.readouterr().err
    assert not out.exists()
