"""Scalars for TensorBoard, and errors if it is not installed or cannot be written."""

import builtins
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgat_fast.errors import ConfigError
from pgat_fast.monitoring.monitor import Monitor

CPU = torch.device("cpu")


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


def train(folder: Path, steps: range) -> None:
    with Monitor(folder, CPU, seq_len=4, interval=2, tensorboard=True, metrics_level="off") as monitor:
        monitor.record("start", epoch=1, step=0, memory=True)
        for step in steps:
            monitor.step(1, step, [2, 4, 3], 2, lambda step=step: {"loss": step / 2})
        monitor.record(
            "validation", epoch=1, step=steps[-1], validation_loss=0.25, train_loss=float("nan"), improved=True
        )


def test_scalars_of_training_validation_and_memory_are_written_by_step(tmp_path: Path) -> None:
    train(tmp_path, range(1, 5))
    series = events(tmp_path / "tensorboard")
    assert series["train/loss"] == [(2, 1.0), (4, 2.0)]
    assert series["validation/validation_loss"] == [(4, 0.25)]
    assert [step for step, _ in series["memory/process_gib"]] == [2, 4]
    assert "validation/train_loss" not in series
    assert "validation/improved" not in series


def test_resumed_run_replaces_repeated_steps(tmp_path: Path) -> None:
    train(tmp_path, range(1, 9))
    train(tmp_path, range(5, 9))
    assert events(tmp_path / "tensorboard")["train/loss"] == [(2, 1.0), (4, 2.0), (6, 3.0), (8, 4.0)]


def test_missing_tensorboard_raises_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return load(name, *rest)

    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r'pip install "pgat-fast\[tensorboard\]"'):
        Monitor(tmp_path, CPU, seq_len=4, tensorboard=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "write", "close"])
def test_error_of_tensorboard_is_logged_once_and_does_not_end_the_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if kind == "folder":
        (tmp_path / "tensorboard").write_text("a file")
    else:
        writer = "torch.utils.tensorboard.SummaryWriter"
        monkeypatch.setattr(f"{writer}.{'add_scalar' if kind == 'write' else 'close'}", full)
    train(tmp_path, range(1, 9))
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "TensorBoard failed" in warnings[0]
