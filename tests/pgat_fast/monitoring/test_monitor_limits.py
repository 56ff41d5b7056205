"""Memory limits apply to the peak of the run, and are logged once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgat_fast.monitoring.jsonl_logger import read_jsonl
from pgat_fast.monitoring.memory import MemoryReading, process_memory
from pgat_fast.monitoring.monitor import Monitor
from pgat_fast.utils.system import GIB
from tests.pgat_fast.monitoring.helpers import SHAPE, open_monitor, take_steps, values, warnings

CUDA = torch.device("cuda", 0)


def plant(monkeypatch: pytest.MonkeyPatch, peaks: list[float], device: bool = False) -> None:
    """Readings with these peaks, one after the other, the last one again and again."""
    remaining = iter([0.0, *peaks])  # the first is the one that a monitor takes when it is made
    last = [0.0]

    def read(*_: Any, **__: Any) -> MemoryReading:
        last[0] = next(remaining, last[0])
        if device:
            return MemoryReading(process_peak_gib=0.1, device_allocated_gib=0.5, device_peak_allocated_gib=last[0])
        return MemoryReading(process_gib=0.1, process_peak_gib=last[0])

    monkeypatch.setattr("pgat_fast.monitoring.monitor.read_memory", read)


def test_limit_warns_once_at_90_percent_and_once_when_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant(monkeypatch, [5.0, 5.5, 5.5, 5.6, 5.6, 6.1])
    with open_monitor(tmp_path, interval=100, memory_limit_gb=6.0) as monitor:
        states = [monitor.step(1, step, SHAPE, 16, values) for step in range(1, 6)]
    assert [state.level for state in states] == ["ok", "near", "near", "near", "over"]
    assert "lower training.batch_size" in states[-1].message
    assert [message.split(":")[0] for message in warnings(caplog)] == ["memory", "memory"]
    lines = read_jsonl(tmp_path / "memory.jsonl")
    assert [(line["level"], line["step"], line["limit"]) for line in lines] == [
        ("WARNING", 2, "near"),
        ("WARNING", 5, "over"),
    ]
    assert "run.memory_limit_gb" in lines[0]["warning"]


def test_device_limit_applies_to_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reset: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    plant(monkeypatch, [30.0, 41.0], device=True)
    with Monitor(tmp_path, CUDA, seq_len=250, device_memory_limit_gb=40.0) as monitor:
        states = [monitor.step(1, step, SHAPE, 16, values) for step in (1, 2)]
        peaks = monitor.peaks()
    assert reset == [CUDA]
    assert [state.over for state in states] == [False, True]
    assert "run.device_memory_limit_gb (40 GiB)" in states[1].message
    assert peaks == {"peak_process_gib": 0.1, "peak_device_gib": 41.0, "limit_gib": None, "device_limit_gib": 40.0}


def test_memory_freed_within_a_step_counts_towards_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    current, peak = process_memory()
    limit = peak + 0.1  # the process may have held much before: the limit is beyond all of that
    with open_monitor(tmp_path, memory_limit_gb=limit) as monitor:
        assert not monitor.step(1, 1, SHAPE, 16, values).over
        block = np.ones(int((limit - current + 0.05) * GIB), dtype=np.uint8)
        del block
        state = monitor.step(1, 2, SHAPE, 16, values)
        peaks = monitor.peaks()
    assert process_memory()[0] < limit
    assert state.over
    assert "run.memory_limit_gb" in state.message
    assert peaks["peak_process_gib"] is not None
    assert peaks["limit_gib"] == limit
    # 0.05 GiB above the limit, give or take what the process does besides.
    assert peaks["peak_process_gib"] == pytest.approx(limit + 0.05, abs=0.04)


def test_memory_held_before_the_run_does_not_count(tmp_path: Path) -> None:
    block = np.ones(300 * 2**20, dtype=np.uint8)
    _, peak = process_memory()
    del block
    with open_monitor(tmp_path, memory_limit_gb=peak) as monitor:
        assert take_steps(monitor, 5) == [False] * 5
        run_peak = monitor.peaks()["peak_process_gib"]
    assert run_peak is not None
    assert run_peak < peak


def test_limit_that_cannot_be_checked_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_monitor(tmp_path, device_memory_limit_gb=1.0) as monitor:
        take_steps(monitor, 10)
    assert warnings(caplog) == ["run.device_memory_limit_gb cannot be checked on cpu"]


def test_memory_is_not_read_between_lines_without_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def count(*_: Any, **__: Any) -> MemoryReading:
        reads.append(1)
        return MemoryReading()

    with open_monitor(tmp_path) as monitor:
        monkeypatch.setattr("pgat_fast.monitoring.monitor.read_memory", count)
        take_steps(monitor, 10)
    assert len(reads) == 2
