"""`pgat-fast sweep`: jobs in processes of their own, their results, and the forecast of an ensemble."""

import json
import os
import re
import shutil
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
from pgat_fast.sweep.jobs import jobs_of, read_jobs, write_jobs
from pgat_fast.sweep.pool import places
from pgat_fast.sweep.table import best_members, collect, ensemble_skill
from pgat_fast.training.checkpoint import read_checkpoint, save_checkpoint
from pgat_fast.training.run import train
from pgat_fast.training.run_folder import finished_results, locked

SETTINGS = ["training.epochs=1", "training.warmup_epochs=0", "run.compile=off"]


@pytest.mark.slow  # four runs
def test_finished_sweep_has_results_and_ensemble_forecast(
    tiny_settings: list[str], data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    config = load_config(None, [*tiny_settings, *SETTINGS])
    jobs = write_jobs(folder, config, jobs_of(config, {"training.learning_rate": ["1e-3", "1e-5"]}, 2))
    for job in jobs:  # as the processes of the sweep do
        train(load_config(config, job.overrides(folder)), progress=False)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/results.json")}
    arguments = ["--grid", "training.learning_rate=1e-3,1e-5", "--seeds", "2", "--out", str(folder), "--quiet"]
    assert main(["sweep", *arguments, "--set", *tiny_settings, *SETTINGS]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/results.json")} == times, "no job is repeated"

    table = pd.read_csv(folder / "results.csv")
    assert list(table["state"]) == ["finished"] * 4
    assert list(table["seed"]) == [config.training.seed, config.training.seed + 1] * 2
    points = json.loads((folder / "summary.json").read_text())["points"]
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

    members = best_members(folder, jobs)
    assert len(members) == 2
    of_one = ensemble_skill(members[:1])
    scaled = json.loads((members[0] / "results.json").read_text())["test"]["scaled"]
    assert of_one["rmse"] == pytest.approx(scaled["model"]["overall"]["rmse"], rel=1e-6)
    assert of_one["skill"] == pytest.approx(scaled["skill"], abs=1e-6)

    assert main(["predict", str(folder), "--from", str(data_file), "--out", str(tmp_path / "forecast.csv")]) == 0
    assert "mean of 2 runs" in capsys.readouterr().out
    forecast = pd.read_csv(tmp_path / "forecast.csv")
    runs = [load_run(member) for member in members]
    closes = np.log(np.stack([predict(run, data_file)["close"] for run in runs]))
    assert forecast["close"].to_numpy() == pytest.approx(np.exp(closes.mean(axis=0)), rel=1e-8)
    assert forecast["close_spread"].to_numpy() == pytest.approx(100 * closes.std(axis=0, ddof=1), rel=1e-6)
    frame = predict_ensemble(runs[:1], data_file)
    assert frame["close"].to_numpy() == pytest.approx(np.exp(closes[0]), rel=1e-12)
    assert frame["close_spread"].isna().all()

    # The same sweep as a machine with GPUs leaves it, in another place.
    moved = folder.rename(tmp_path / "moved")
    for path in [moved / "config.yaml", *moved.glob("runs/*/config.yaml")]:
        text = re.sub(r"(?m)^  device: .*$", "  device: cuda:77", path.read_text())
        path.write_text(re.sub(r"(?m)^  backend: .*$", "  backend: triton", text))
    for path in sorted(moved.glob("runs/*/checkpoints/*")):
        checkpoint = read_checkpoint(path)
        checkpoint.about["config"]["run"]["device"] = "cuda:77"
        shutil.rmtree(path)
        save_checkpoint(path.parent, path.name, checkpoint)
    arguments = ["--from", str(data_file), "--out", str(tmp_path / "again.csv"), "--device", "cpu"]
    assert main(["predict", str(moved), *arguments]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "again.csv"), forecast, rtol=1e-9)
    run = moved / members[0].relative_to(folder)
    assert main(["evaluate", str(run), "--quiet"]) == 0
    assert main(["report", str(run)]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "model.pt2")]) == 0
    capsys.readouterr()
    for command in (["evaluate", str(moved)], ["export", str(moved), "--out", str(tmp_path / "model.pt2")]):
        assert main(command) == 2
        assert f"a folder of runs: name one of those in {moved / 'runs'}" in capsys.readouterr().err


@pytest.mark.multiprocess
def test_sweep_runs_unfinished_jobs_and_reports_failed_and_skipped_ones(
    tiny_settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    arguments = ["sweep", "--grid", "model.seq_len=6,30", "--seeds", "2", "--out", str(folder), "--quiet"]
    arguments += ["--set", *tiny_settings, *SETTINGS]
    assert main([*arguments, "--jobs", "0"]) == 0
    interrupted, running, *failing = read_jobs(folder)  # 30 days of history leave no windows
    for job in (interrupted, running):  # as a run leaves it that was stopped before its first checkpoint
        (folder / "runs" / job.name).mkdir(parents=True)
    with locked(folder / "runs" / running.name):  # as if a queue had started it
        assert main(arguments) == 1
    assert list(collect(folder, read_jobs(folder))["state"]) == ["finished", "not run", "not run", "not run"]
    assert interrupted.folder(folder).name == f"{interrupted.name}-2", "it starts anew"
    assert finished_results(running.folder(folder)) is None
    printed = capsys.readouterr().out
    assert "1 of 4 jobs are finished" in printed
    assert f"skipped, because another process is running them: {running.name}" in printed
    for job in failing:
        assert f"failed: {job.name}: exit code 2: error: " in printed


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


def test_places_on_cpu_match_requested_number() -> None:
    assert [place.name for place in places("cpu", 3)] == ["CPU"] * 3
    assert len(places("cpu", None)) >= 1
