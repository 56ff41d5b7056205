"""The accuracy of a precision is measured on one step against float64, and on trained models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = "configs/production_batched.yaml"


@pytest.mark.multiprocess
def test_errors_and_trainings_are_measured(tiny_settings: list[str], tmp_path: Path) -> None:
    out = tmp_path / "accuracy.json"
    command = [sys.executable, "-m", "bench.accuracy", "--config", CONFIG, "--errors", CONFIG, "--seeds", "1"]
    result = subprocess.run(
        [*command, "--json", str(out), "--set", *tiny_settings], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(out.read_text())
    errors = record["errors"][CONFIG]["errors"]
    assert list(errors) == ["reference:highest", "torch:highest", "reference:bf16", "torch:bf16"]
    for kind in ("forecast", "gradients"):
        for backend in ("reference", "torch"):
            # Some row sums are near zero: in bf16 gradients are off by 0.01 to 0.12, as the random weights have it.
            assert 0 < errors[f"{backend}:highest"][kind] < 1e-4 < errors[f"{backend}:bf16"][kind] < 0.5
    highest, bf16 = record["trained"]
    assert (highest["precision"], highest["seed"], highest["rmse_ratio"]) == ("highest", 1, 1)
    assert (bf16["precision"], bf16["seed"]) == ("bf16", 1)
    assert 0.8 < bf16["rmse_ratio"] < 1.25
    assert bf16["rmse"] != highest["rmse"]


@pytest.mark.multiprocess
def test_a_training_that_fails_is_told_of(tiny_settings: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.accuracy", "--config", CONFIG, "--seeds", "1", "--precisions", "highest"]
    settings = [*tiny_settings, f"data.path={tmp_path / 'nowhere.csv'}"]
    result = subprocess.run([*command, "--set", *settings], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "nowhere.csv" in result.stdout
