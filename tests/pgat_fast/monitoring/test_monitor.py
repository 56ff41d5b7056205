"""Lines, speed and faults of the monitor."""

import json
import logging
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgat_fast.monitoring.jsonl_logger import read_jsonl
from pgat_fast.monitoring.memory import MemoryReading, process_memory
from pgat_fast.utils.system import GIB
from tests.own_process import in_own_process
from tests.pgat_fast.monitoring.helpers import (
    SHAPE,
    open_monitor,
    stages,
    take_steps,
    values,
    warnings,
)

# --- lines --------------------------------------------------------------------------------------------------------


def test_line_holds_time_stage_and_progress(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.record("validation", epoch=2, step=40, batch_shape=SHAPE, level="warning", improved=True, loss=0.25)
    (line,) = read_jsonl(tmp_path / "metrics.jsonl")
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "WARNING", "stage": "validation", "epoch": 2, "step": 40, "batch_shape": SHAPE, "improved": True,
        "loss": 0.25,
    }  # fmt: skip
    assert read_jsonl(tmp_path / "memory.jsonl") == []


def test_memory_line_is_written_on_request(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        monitor.record("start", epoch=None, step=0, memory=True)
    (line,) = read_jsonl(tmp_path / "memory.jsonl")
    assert (line["stage"], line["epoch"], line["step"], line["batch_shape"]) == ("start", None, 0, None)
    assert 0 < line["process_gib"] <= line["process_peak_gib"]
    assert 0 < line["system_used_percent"] < 100


def test_resume_is_written_to_both_files(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        take_steps(monitor, 10)
    with open_monitor(tmp_path) as monitor:
        monitor.record("resume", epoch=1, step=5, checkpoint="step-00000005")
        take_steps(monitor, 5, first=6)
    for name in ("metrics.jsonl", "memory.jsonl"):
        assert stages(tmp_path, name) == [("train", 5), ("resume", 5), ("train", 10)]


def test_training_line_is_written_every_interval(tmp_path: Path) -> None:
    steps = []

    def ask() -> dict[str, float]:
        steps.append(step)
        return values()

    with open_monitor(tmp_path) as monitor:
        for step in range(1, 13):
            monitor.step(1, step, SHAPE, 16, ask)
    assert steps == [5, 10]
    assert stages(tmp_path, "metrics.jsonl") == stages(tmp_path, "memory.jsonl") == [("train", 5), ("train", 10)]
    line = read_jsonl(tmp_path / "metrics.jsonl")[0]
    assert line.items() >= {"level": "INFO", "epoch": 1, "batch_shape": SHAPE, **values()}.items()


def test_debug_level_writes_every_step(tmp_path: Path) -> None:
    with open_monitor(tmp_path, metrics_level="debug") as monitor:
        take_steps(monitor, 6)
    assert [line["level"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == ["DEBUG"] * 4 + ["INFO", "DEBUG"]
    assert stages(tmp_path, "memory.jsonl") == [("train", 5)]


def test_values_are_not_computed_for_lines_that_are_not_written(tmp_path: Path) -> None:
    with open_monitor(tmp_path, metrics_level="warning") as monitor:
        for step in range(1, 11):
            monitor.step(1, step, SHAPE, 16, lambda: pytest.fail("computed for nothing"))
        monitor.record("error", epoch=1, step=10, level="error", error="told")
    assert [line["stage"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == ["error"]


def test_level_off_creates_no_file_and_still_records_peaks(tmp_path: Path) -> None:
    with open_monitor(tmp_path, metrics_level="off", memory_level="off") as monitor:
        take_steps(monitor, 10)
        peak = monitor.peaks()["peak_process_gib"]
    assert list(tmp_path.iterdir()) == []
    assert peak is not None
    assert peak > 0


# --- speed --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that stands still but for the returned function, which moves it on by seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    return pass_time


def speeds(folder: Path) -> list[tuple[float, ...]]:
    names = ("seconds_per_step", "windows_per_second", "samples_per_second")
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line["stage"] == "train"]
    return [tuple(line[name] for name in names) for line in lines]


def test_speed_covers_steps_since_last_line(tmp_path: Path, clock: Callable[[float], None]) -> None:
    with open_monitor(tmp_path) as monitor:
        for step in range(1, 11):
            clock(0.5 if step <= 5 else 0.25)
            monitor.step(1, step, SHAPE, 16, values)
    # A window is 250 samples, a step 16 windows.
    assert speeds(tmp_path) == [(0.5, 32.0, 8000.0), (0.25, 64.0, 16000.0)]


def test_speed_leaves_out_pauses_between_steps(tmp_path: Path, clock: Callable[[float], None]) -> None:
    with open_monitor(tmp_path) as monitor:
        clock(3600)  # the first validation
        for step in range(1, 6):
            if step in (1, 4):  # an epoch begins, after an hour of validation and saving
                clock(3600)
                monitor.resume_clock()
            clock(0.5)
            monitor.step(1, step, SHAPE, 16, values)
    assert speeds(tmp_path) == [(0.5, 32.0, 8000.0)]


def test_speed_includes_waiting_for_the_device(tmp_path: Path, clock: Callable[[float], None]) -> None:
    def wait() -> dict[str, float]:
        clock(2.0)
        return values()

    with open_monitor(tmp_path) as monitor:
        for step in range(1, 6):
            clock(0.1)
            monitor.step(1, step, SHAPE, 16, wait)
    assert speeds(tmp_path)[0][0] == pytest.approx(0.5)  # (5 * 0.1 + 2) / 5, up to rounding


# --- faults -------------------------------------------------------------------------------------------------------


def test_failing_values_are_left_out_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> dict[str, float]:
        raise RuntimeError("no such tensor")

    with open_monitor(tmp_path) as monitor:
        for step in range(1, 16):
            monitor.step(1, step, SHAPE, 16, fail)
    assert [sorted(line)[-1] for line in read_jsonl(tmp_path / "metrics.jsonl")] == ["windows_per_second"] * 3
    assert len(warnings(caplog)) == 1
    assert "no such tensor" in warnings(caplog)[0]


def test_stop_request_in_values_is_raised(tmp_path: Path) -> None:
    def interrupt() -> dict[str, float]:
        raise KeyboardInterrupt

    with open_monitor(tmp_path, interval=1) as monitor, pytest.raises(KeyboardInterrupt):
        monitor.step(1, 1, SHAPE, 16, interrupt)


def test_failing_memory_readings_raise_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> MemoryReading:
        raise RuntimeError("the driver is gone")

    with open_monitor(tmp_path, memory_limit_gb=1e6) as monitor:
        monkeypatch.setattr("pgat_fast.monitoring.monitor.read_memory", fail)
        assert take_steps(monitor, 10) == [False] * 10
        monitor.record("error", epoch=1, step=10, memory=True, error="told")
        assert monitor.reading() == {}
        assert monitor.peaks()["peak_process_gib"] is None
    assert stages(tmp_path, "metrics.jsonl") == [("train", 5), ("train", 10), ("error", 10)]
    assert len(warnings(caplog)) == 4  # one for a step, a line, a reading, the peaks


def test_closed_monitor_drops_lines(tmp_path: Path) -> None:
    with open_monitor(tmp_path) as monitor:
        pass
    monitor.record("end", epoch=1, step=5, memory=True)
    take_steps(monitor, 5)
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


# --- the monitor itself -------------------------------------------------------------------------------------------


@pytest.mark.slow  # thousands of steps
def test_ten_thousand_steps_keep_nothing_in_memory(tmp_path: Path) -> None:
    in_own_process(_take_ten_thousand_steps, tmp_path)


def _take_ten_thousand_steps(tmp_path: Path) -> None:
    with open_monitor(tmp_path, interval=25, memory_limit_gb=1e6) as monitor:
        take_steps(monitor, 2_000)
        before, _ = process_memory()
        take_steps(monitor, 10_000, first=2_001)
        after, _ = process_memory()
        # 512 KiB: a tenth of a KiB for every step would be twice as much.
        assert after - before < 512 * 1024 / GIB
        tracemalloc.start()
        take_steps(monitor, 100, first=12_001)
        traced, _ = tracemalloc.get_traced_memory()
        take_steps(monitor, 1_000, first=12_101)
        grown = tracemalloc.get_traced_memory()[0] - traced
        tracemalloc.stop()
    # 16 KiB: caches of the interpreter fill up; 17 bytes a step would be as much.
    assert grown < 16 * 1024


def test_two_runs_in_one_process_write_separate_files(tmp_path: Path) -> None:
    for name in ("first", "second", "inner"):
        (tmp_path / name).mkdir()
    open_before = len(os.listdir("/proc/self/fd"))
    with open_monitor(tmp_path / "first") as first:
        first.record("start", epoch=1, step=1)
    with open_monitor(tmp_path / "second") as second:
        second.record("start", epoch=1, step=2)
        with open_monitor(tmp_path / "inner") as inner:
            inner.record("start", epoch=1, step=3)
        second.record("end", epoch=1, step=4)
    assert stages(tmp_path / "first", "metrics.jsonl") == [("start", 1)]
    assert stages(tmp_path / "second", "metrics.jsonl") == [("start", 2), ("end", 4)]
    assert stages(tmp_path / "inner", "metrics.jsonl") == [("start", 3)]
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_lines_are_not_in_the_log_of_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with open_monitor(tmp_path) as monitor:
        monitor.record("error", epoch=1, step=1, level="error", memory=True, error="told")
        take_steps(monitor, 10)
    assert caplog.records == []
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
