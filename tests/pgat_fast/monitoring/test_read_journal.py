"""A report reads what counts: whole lines, and of steps that were done twice the last ones."""

from pathlib import Path
from typing import Any

import pytest

from pgat_fast.monitoring.journal import read_journal
from tests.pgat_fast.monitoring.journals import put, warnings


def test_no_file_has_no_lines(path: Path) -> None:
    assert read_journal(path) == []


def test_an_unfinished_last_line_is_left_out_quietly(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_journal(path) == [{"a": 1}, {"a": 2}]
    assert warnings(caplog) == []


def test_damaged_lines_are_left_out_with_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b'{"a": 1}\n\xff\0\n[1]\n' + b"[" * 200_000 + b'\n{"a": 2}\n')
    assert read_journal(path) == [{"a": 1}, {"a": 2}]
    assert warnings(caplog) == [f"{path}: 3 damaged lines are left out, the first is line 2"]


def test_lines_that_a_resumed_run_did_again_are_left_out(path: Path) -> None:
    kept = [
        {"stage": "start", "epoch": 1, "step": 0},
        {"stage": "train", "epoch": 1, "step": 25},
        {"stage": "validation", "epoch": 1, "step": 40},
        {"stage": "checkpoint", "epoch": 2, "step": 40},
    ]
    superseded = [
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
    put(path, *kept, *superseded, *later)
    assert read_journal(path) == kept + later


def test_every_resume_counts(path: Path) -> None:
    lines: list[dict[str, Any]] = []
    for attempt in range(3):
        lines += [{"stage": "train", "step": step, "attempt": attempt} for step in (10, 20)]
        lines.append({"stage": "resume", "step": 10})
    put(path, *lines)
    trained = [(line["step"], line["attempt"]) for line in read_journal(path) if line["stage"] == "train"]
    assert trained == [(10, 0), (10, 1), (10, 2)]


def test_a_validation_at_the_step_of_the_resume_counts_only_if_its_epoch_was_over(path: Path) -> None:
    # Saved after the last step of epoch 2, killed after its validation and before the next checkpoint.
    put(
        path,
        {"stage": "validation", "epoch": 1, "step": 40},
        {"stage": "checkpoint", "epoch": 2, "step": 80},
        {"stage": "validation", "epoch": 2, "step": 80, "validation_loss": 0.5},
        {"stage": "resume", "epoch": 2, "step": 80},
        {"stage": "validation", "epoch": 2, "step": 80, "validation_loss": 0.5},
    )
    assert [line["stage"] for line in read_journal(path)] == ["validation", "checkpoint", "resume", "validation"]


def test_a_resume_without_a_step_supersedes_nothing(path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"stage": "train", "epoch": None, "step": 5},
        {"stage": "resume", "epoch": None, "step": None},
    ]
    put(path, *lines)
    assert read_journal(path) == lines
