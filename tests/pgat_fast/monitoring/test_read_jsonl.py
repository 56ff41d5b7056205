"""read_jsonl returns whole lines, and only the last ones of steps that were repeated."""

from pathlib import Path
from typing import Any

import pytest

from pgat_fast.monitoring.jsonl_logger import read_jsonl
from tests.pgat_fast.monitoring.helpers import warnings, write_lines


def test_missing_file_has_no_lines(path: Path) -> None:
    assert read_jsonl(path) == []


def test_unfinished_last_line_is_skipped_without_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    assert warnings(caplog) == []


def test_damaged_lines_are_skipped_with_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b'{"a": 1}\n\xff\0\n[1]\n' + b"[" * 200_000 + b'\n{"a": 2}\n')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    assert warnings(caplog) == [f"{path}: skipped 3 damaged lines, the first is line 2"]


def test_lines_that_a_resumed_run_repeated_are_left_out(path: Path) -> None:
    kept = [
        {"stage": "start", "epoch": 1, "step": 0},
        {"stage": "train", "epoch": 1, "step": 25},
        {"stage": "validation", "epoch": 1, "step": 40},
        {"stage": "checkpoint", "epoch": 2, "step": 40},
    ]
    replaced = [
        {"stage": "train", "epoch": 2, "step": 50},
        {"stage": "validation", "epoch": 2, "step": 80},
        {"stage": "checkpoint", "epoch": 3, "step": 80},
    ]
    later = [
        {"stage": "error", "epoch": 3, "step": 90},
        {"stage": "start", "epoch": 1, "step": 0},
        {"stage": "resume", "epoch": 2, "step": 40},
        {"stage": "train", "epoch": 2, "step": 50, "again": True},
    ]
    write_lines(path, *kept, *replaced, *later)
    assert read_jsonl(path) == kept + later


def test_every_resume_replaces_later_steps(path: Path) -> None:
    lines: list[dict[str, Any]] = []
    for attempt in range(3):
        lines += [{"stage": "train", "step": step, "attempt": attempt} for step in (10, 20)]
        lines.append({"stage": "resume", "step": 10})
    write_lines(path, *lines)
    trained = [(line["step"], line["attempt"]) for line in read_jsonl(path) if line["stage"] == "train"]
    assert trained == [(10, 0), (10, 1), (10, 2)]


def test_validation_at_resumed_step_is_replaced_if_its_epoch_had_not_ended(path: Path) -> None:
    # Saved after the last step of epoch 2, killed after its validation and before the next checkpoint.
    write_lines(
        path,
        {"stage": "validation", "epoch": 1, "step": 40},
        {"stage": "checkpoint", "epoch": 2, "step": 80},
        {"stage": "validation", "epoch": 2, "step": 80, "validation_loss": 0.5},
        {"stage": "resume", "epoch": 2, "step": 80},
        {"stage": "validation", "epoch": 2, "step": 80, "validation_loss": 0.5},
    )
    assert [line["stage"] for line in read_jsonl(path)] == ["validation", "checkpoint", "resume", "validation"]


def test_resume_without_step_replaces_nothing(path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"stage": "train", "epoch": None, "step": 5},
        {"stage": "resume", "epoch": None, "step": None},
    ]
    write_lines(path, *lines)
    assert read_jsonl(path) == lines
