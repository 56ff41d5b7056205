"""Runs with truly compiled training, of a small forecaster, since compiling the model takes minutes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pgat_fast.config import Config
from pgat_fast.errors import TrainingError
from pgat_fast.training import setup, trainer
from tests.pgat_fast.training.forecaster import Forecaster
from tests.pgat_fast.training.runs import assert_same, interrupted, outcome, run


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "build_model", Forecaster)
    monkeypatch.setattr(setup, "resolve_backend", lambda backend: "torch")


COMPILED = ["run.compile=whole", "training.gradient_accumulation_steps=2"]


@pytest.mark.compile
def test_compiled_run_learns_like_eager_one_and_compiles_once(tiny: list[str], tmp_path: Path) -> None:
    torch._dynamo.reset()
    eager = run([*tiny, *COMPILED, "run.compile=off"], tmp_path / "eager")
    torch._dynamo.utils.counters.clear()
    compiled = run([*tiny, *COMPILED], tmp_path / "compiled")
    # The small function that tests the compiler, and the model.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert (eager["compiled"], compiled["compiled"]) == (False, True)
    for key in ("train_losses", "validation_losses"):
        assert compiled[key] == pytest.approx(eager[key], rel=1e-5), "the same dropout, and products up to rounding"
    assert eager["initial_validation_loss"] == compiled["initial_validation_loss"]


@pytest.mark.compile
@pytest.mark.parametrize("precision", ["highest", "bf16"])
def test_interrupted_compiled_run_resumes_bitwise(tiny: list[str], tmp_path: Path, precision: str) -> None:
    settings = [*tiny, *COMPILED, f"run.precision={precision}"]
    run(settings, tmp_path / "whole")
    interrupted(settings, tmp_path / "stopped", [9, 5])
    assert_same(outcome(tmp_path / "stopped"), outcome(tmp_path / "whole"))


@pytest.mark.compile
def test_nonfinite_value_of_compiled_run_is_diagnosed_eagerly(
    tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="pgat_fast")

    def spoiled(config: Config, **_: object) -> Any:
        model = Forecaster(config)
        nn.init.constant_(model.outer.weight, 1e38)
        return model

    monkeypatch.setattr(setup, "build_model", spoiled)
    monkeypatch.setattr(trainer, "validation_loss", lambda *_: 1.0)
    with pytest.raises(TrainingError, match="the gradient is not finite"):
        run([*tiny, *COMPILED], tmp_path / "run")
    report = json.loads((tmp_path / "run" / "nonfinite-step-00000001.json").read_bytes())
    assert (report["compiled"], report["precision"]) == (True, "highest")
    assert report["batches"][0]["loss"] in ("inf", "nan")
