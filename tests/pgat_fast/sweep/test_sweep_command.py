"""`pgat-fast sweep` with real runs in separate processes: results, failures, stopping and resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pgat_fast import load_config, load_run, predict
from pgat_fast.cli import main
from pgat_fast.forecasting.ensemble import predict_ensemble
from pgat_fast.sweep.jobs import read_jobs
from pgat_fast.sweep.pool import places
from pgat_fast.sweep.table import best_members, collect, ensemble_skill, finished
from pgat_fast.training.run_folder import locked

SETTINGS = ["training.epochs=1", "training.warmup_epochs=0", "run.compile=off"]


@pytest.fixture(scope="module")
def swept(tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished sweep of two points and two seeds."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    arguments = ["--grid", "training.learning_rate=1e-3,1e-5", "--seeds", "2", "--out", str(folder), "--quiet"]
    assert main(["sweep", *arguments, "--set", *tiny_settings, *SETTINGS]) == 0
    return folder


@pytest.mark.multiprocess
def test_results_list_all_jobs_with_mean_and_spread(swept: Path) -> None:
    table = pd.read_csv(swept / "results.csv")
    assert list(table["state"]) == ["finished"] * 4
    first = load_config(swept / "config.yaml").training.seed
    assert list(table["seed"]) == [first, first + 1] * 2
    points = json.loads((swept / "summary.json").read_text())["points"]
    losses = [point["measures"]["best_validation_loss"]["mean"] for point in points]
    assert losses == sorted(losses), "the best first"
    for point in points:
        rows = table[table["training.learning_rate"] == float(point["settings"]["training.learning_rate"])]
        assert point["seeds"] == point["asked"] == 2
        assert point["measures"]["test_rmse"]["mean"] == pytest.approx(rows["test_rmse"].mean())
        assert point["measures"]["test_rmse"]["spread"] == pytest.approx(rows["test_rmse"].std(ddof=1))
        assert point["ensemble"]["members"] == 2
        assert point["ensemble"]["rmse"] <= rows["test_rmse"].max()
        assert set(point["ensemble"]["skill"]) == {"last_value", "zero_return", "drift"}


@pytest.mark.multiprocess
def test_second_call_repeats_no_job(swept: Path, tiny_settings: list[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.glob("runs/*/results.json")}
    arguments = ["--grid", "training.learning_rate=1e-3,1e-5", "--seeds", "2", "--out", str(swept), "--quiet"]
    assert main(["sweep", *arguments, "--set", *tiny_settings, *SETTINGS]) == 0
    assert {path: path.stat().st_mtime_ns for path in swept.glob("runs/*/results.json")} == before


@pytest.mark.multiprocess
def test_ensemble_of_one_equals_run(swept: Path) -> None:
    folder = best_members(swept, read_jobs(swept))[0]
    ensemble = ensemble_skill([folder])
    results = json.loads((folder / "results.json").read_text())
    assert ensemble["rmse"] == pytest.approx(results["test"]["scaled"]["model"]["overall"]["rmse"], rel=1e-6)
    for name, value in results["test"]["scaled"]["skill"].items():
        assert ensemble["skill"][name] == pytest.approx(value, abs=1e-6)


@pytest.mark.multiprocess
def test_sweep_forecast_is_mean_of_best_seeds(
    swept: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "forecast.csv"
    assert main(["predict", str(swept), "--from", str(data_file), "--out", str(out)]) == 0
    forecast = pd.read_csv(out)
    runs = [load_run(folder) for folder in best_members(swept, read_jobs(swept))]
    assert len(runs) == 2
    closes = np.stack([predict(run, data_file)["close"] for run in runs])
    assert forecast["close"].to_numpy() == pytest.approx(np.exp(np.log(closes).mean(axis=0)), rel=1e-8)
    spread = 100 * np.log(closes).std(axis=0, ddof=1)
    assert forecast["close_spread"].to_numpy() == pytest.approx(spread, rel=1e-6)
    assert "mean of 2 runs" in capsys.readouterr().out
    frame = predict_ensemble(runs[:1], data_file)
    assert frame["close"].to_numpy() == pytest.approx(closes[0], rel=1e-12)
    assert frame["close_spread"].isna().all()


@pytest.mark.multiprocess
def test_failed_job_is_reported_and_others_continue(
    tiny_settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    grid = ["model.seq_len=6,30"]  # the longer one leaves no windows
    arguments = ["--grid", *grid, "--out", str(folder), "--quiet"]
    assert main(["sweep", *arguments, "--set", *tiny_settings, *SETTINGS]) == 1
    assert list(collect(folder, read_jobs(folder))["state"]) == ["finished", "not run"]
    printed = capsys.readouterr().out
    assert "1 of 2 jobs are finished" in printed
    assert "failed: model.seq_len-30-seed-" in printed
    assert "exit code 2: error: " in printed


@pytest.mark.multiprocess
def test_stopped_sweep_stops_its_job(tiny_settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = ["sweep", "--seeds", "2", "--out", str(folder), "--jobs", "1", "--quiet", "--set", *tiny_settings]
    arguments += ["training.epochs=2000", "run.compile=off", "training.patience=2000", "training.max_minutes=2"]
    with subprocess.Popen([sys.executable, "-m", "pgat_fast", *arguments], env={**os.environ}) as process:
        deadline = time.monotonic() + 100
        while not list(folder.glob("runs/*/checkpoints/*/manifest.json")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 128 + signal.SIGTERM
    (run_folder,) = folder.glob("runs/*")
    assert json.loads((run_folder / "status.json").read_text())["state"] == "stopped"
    assert main([*arguments, "--jobs", "0"]) == 0, "the table of what there is"
    assert set(collect(folder, read_jobs(folder))["state"]) == {"stopped", "not run"}


@pytest.mark.multiprocess
def test_job_stopped_before_first_checkpoint_starts_anew(tiny_settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = ["sweep", "--out", str(folder), "--quiet", "--set", *tiny_settings, *SETTINGS]
    assert main([*arguments, "--jobs", "0"]) == 0
    (job,) = read_jobs(folder)
    (folder / "runs" / job.name).mkdir(parents=True)  # as left by a run that was stopped before its first checkpoint
    assert main(arguments) == 0
    assert list(collect(folder, [job])["state"]) == ["finished"]
    assert job.folder(folder).name == f"{job.name}-2"


@pytest.mark.multiprocess
def test_job_locked_by_another_process_is_skipped(
    tiny_settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    arguments = ["sweep", "--seeds", "2", "--out", str(folder), "--quiet", "--set", *tiny_settings, *SETTINGS]
    assert main([*arguments, "--jobs", "0"]) == 0
    first, second = read_jobs(folder)
    (folder / "runs" / first.name).mkdir(parents=True)
    with locked(folder / "runs" / first.name):  # as if a queue had started it
        assert main(arguments) == 0
    assert finished(second.folder(folder)) is not None
    assert finished(first.folder(folder)) is None
    assert f"left to the processes that are at work on them: {first.name}" in capsys.readouterr().out


def test_places_on_cpu_match_requested_number() -> None:
    assert [place.name for place in places("cpu", 3)] == ["CPU"] * 3
    assert len(places("cpu", None)) >= 1
