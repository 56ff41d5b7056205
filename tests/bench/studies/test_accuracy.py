"""Tests of `bench.studies.accuracy`: errors of one step against float64, and of trained models."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.studies import accuracy
from pgat_fast.cli import main as cli
from tests.bench.in_process import call_as_command, run_tasks_in_process

CONFIG = "configs/production_batched.yaml"


def train_here(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    """Stand in for `subprocess.run` of `pgat-fast train`, without the process."""
    return subprocess.CompletedProcess(command, cli(command[command.index("train") :]), stdout="", stderr="")


@pytest.mark.slow  # trains twice
def test_errors_and_trainings_are_measured(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_tasks_in_process(monkeypatch, "bench.studies.accuracy")
    monkeypatch.setattr(accuracy, "subprocess", SimpleNamespace(run=train_here))
    out = tmp_path / "accuracy.json"
    arguments = ["--config", CONFIG, "--errors", CONFIG, "--seeds", "1", "--json", str(out), "--set", *tiny_settings]
    assert call_as_command(monkeypatch, accuracy.main, "bench.studies.accuracy", arguments) == 0
    record = json.loads(out.read_text())
    errors = record["errors"][CONFIG]["errors"]
    assert list(errors) == ["reference:highest", "torch:highest", "reference:bf16", "torch:bf16"]
    for kind in ("forecast", "gradients"):
        for backend in ("reference", "torch"):
            # Some row sums are near zero: bf16 gradients are off by 0.01 to 0.12, depending on the random weights.
            assert 0 < errors[f"{backend}:highest"][kind] < 1e-4 < errors[f"{backend}:bf16"][kind] < 0.5
    highest, bf16 = record["trained"]
    assert (highest["precision"], highest["seed"], highest["rmse_ratio"]) == ("highest", 1, 1)
    assert (bf16["precision"], bf16["seed"]) == ("bf16", 1)
    assert 0.8 < bf16["rmse_ratio"] < 1.25
    assert bf16["rmse"] != highest["rmse"]


@pytest.mark.multiprocess
def test_failed_training_is_reported(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", CONFIG, "--seeds", "1", "--precisions", "highest", "--set", *tiny_settings]
    arguments.append(f"data.path={tmp_path / 'nowhere.csv'}")
    assert call_as_command(monkeypatch, accuracy.main, "bench.studies.accuracy", arguments) == 1
    assert "nowhere.csv" in capsys.readouterr().out
