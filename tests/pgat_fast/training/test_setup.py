"""Preparation of a run: what is rejected before anything is written, and what is compiled."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import load_config
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.errors import BackendError, ConfigError, DataError
from pgat_fast.training import setup
from pgat_fast.training.setup import Setup
from tests.pgat_fast.training.runs import run

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["data.path=nowhere.csv"], DataError, r"nowhere.csv.*does not exist"),
        (["model.seq_len=250"], DataError, r"too few.*at least"),
        (["training.batch_size=21"], DataError, r"20 windows do not fill one batch of 21"),
        (["data.rows=41"], ConfigError, r"data.rows is 41, but .* has 40 rows"),
        (["data.targets=log_Open,log_High,log_Low,volume"], DataError, r"volume"),
        (["run.device=cuda:9"], BackendError, r"cuda:9"),
        (["run.backend=triton"], BackendError, r"triton"),
        (
            ["run.backend=reference", "run.compile=on"],
            BackendError,
            r"run\.compile is on, but the backend reference cannot be compiled",
        ),
    ],
)
def test_invalid_run_is_rejected_before_anything_is_written(
    tiny: list[str], tmp_path: Path, overrides: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run([*tiny, *overrides], tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_levels_declared_as_returns_are_rejected(tmp_path: Path, tiny: list[str]) -> None:
    from pgat_fast.data.build import build_file

    build_file(tmp_path / "levels.csv", targets="levels", rows=40)
    levels = [*tiny, f"data.path={tmp_path / 'levels.csv'}"]
    with pytest.raises(ConfigError, match=r"set data.target_kind to levels"):
        run(levels, tmp_path / "wrong")
    results = run([*levels, "data.target_kind=levels", "training.max_steps=1"], tmp_path / "right")
    assert results["test"]["price"]["zero_return"]["overall"]["mape"] < 0.05


def test_more_ranks_than_windows_of_batch_are_rejected(tiny: list[str]) -> None:
    group = SingleProcess()
    group.size = 5
    with pytest.raises(ConfigError, match=r"training\.batch_size 4 is the batch of all 5 ranks together"):
        Setup(load_config(None, tiny), CPU, group)


@pytest.fixture
def compilable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the trial of the compiler: the model is never called."""
    monkeypatch.setattr("pgat_fast.model.compilation.why_not", lambda backend, device: None)


@pytest.mark.parametrize(("steps", "timed"), [(49, False), (50, True)])
def test_run_of_many_steps_is_estimated_by_forward_pass_of_batch(
    steps: int, timed: bool, tiny: list[str], compilable: None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def measure(model: nn.Module, inputs: Sequence[Tensor], *how: object) -> float:
        assert model.training
        assert len(inputs[0]) == 4, "windows of a batch"
        return 7.0

    monkeypatch.setattr(setup, "measure_batch_seconds", measure)
    caplog.set_level(logging.INFO)
    settings = ["training.gradient_accumulation_steps=2", "training.epochs=100", f"training.max_steps={steps}"]
    Setup(load_config(None, [*tiny, *settings]), CPU, SingleProcess())
    assert (f"compile auto: {steps} steps take about {7 * 2 * steps} s" in caplog.text) is timed


def test_limit_of_steps_or_minutes_lowers_expected_steps_for_compilation(
    tiny: list[str], compilable: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    longer = ["training.gradient_accumulation_steps=2", "training.epochs=1000"]
    for limit, steps in (("max_steps=3", 3), ("max_minutes=1e-9", 1)):
        config = load_config(None, [*tiny, *longer, f"training.{limit}"])
        Setup(config, CPU, SingleProcess())
        assert f"compile auto: {steps} steps take" in caplog.text
    Setup(load_config(None, [*tiny, *longer]), CPU, SingleProcess())
    assert "compile auto: 3000 steps take" in caplog.text
