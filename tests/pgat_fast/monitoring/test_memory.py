"""Readings of memory, limits of the peaks, and release of caches."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from pgat_fast.monitoring.memory import (
    DEVICE_MEMORY_LIMIT,
    GIB,
    MEMORY_LIMIT,
    MemoryReading,
    check_limits,
    process_memory,
    read_memory,
    release_caches,
)
from tests.own_process import in_own_process

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_resident_memory_equals_that_of_psutil() -> None:
    reading = read_memory(CPU)
    assert reading.process_gib is not None
    # 5 %: the process goes on working between the two readings.
    assert reading.process_gib == pytest.approx(psutil.Process().memory_info().rss / GIB, rel=0.05)
    assert reading.system_available_gib is not None
    assert 0 < reading.system_available_gib < psutil.virtual_memory().total / GIB


@pytest.mark.multiprocess
def test_freed_memory_stays_in_the_peak() -> None:
    in_own_process(_fill_and_free)


def _fill_and_free() -> None:
    before, highest = process_memory()
    size = int((highest - before) * GIB) + 100 * 2**20
    block = np.ones(size, dtype=np.uint8)
    filled, _ = process_memory()
    del block
    after, peak = process_memory()
    # 20 MiB: what else the process allocates or frees meanwhile.
    assert filled - before == pytest.approx(size / GIB, abs=20 / 1024)
    assert after == pytest.approx(before, abs=20 / 1024)
    assert peak >= filled - 20 / 1024


def test_peak_below_baseline_does_not_count() -> None:
    current, peak = process_memory()
    reading = read_memory(CPU, baseline_gib=peak + 1)
    # 1 %: the process goes on working between the two readings.
    assert reading.process_peak_gib == pytest.approx(current, rel=0.01)
    assert read_memory(CPU, baseline_gib=0).process_peak_gib == pytest.approx(peak, rel=0.01)


@pytest.mark.multiprocess
def test_peak_of_parent_process_is_not_inherited() -> None:
    child = "from pgat_fast.monitoring.memory import process_memory; print(*process_memory())"
    parent = (
        "import subprocess, sys; block = b'x' * (1500 * 2**20);"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, check=True, text=True).stdout)"
    )
    root = str(Path(__file__).parents[3])
    completed = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, check=True, text=True, env={"PYTHONPATH": root}
    )
    current, peak = map(float, completed.stdout.split())
    assert current <= peak < 1.0


def test_reading_without_gpu_has_no_device_fields() -> None:
    fields = read_memory(CPU).to_dict()
    assert list(fields) == ["process_gib", "process_peak_gib", "system_available_gib", "system_used_percent"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 8 GiB that is 75 % full, as torch and the driver would describe it."""
    stats: dict[str, Any] = {
        "allocated_bytes": {"all": {"current": 1 * GIB, "peak": 3 * GIB}},
        "reserved_bytes": {"all": {"current": 4 * GIB, "peak": 5 * GIB}},
        "num_alloc_retries": 6,
        "num_ooms": 7,
    }
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: stats)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * GIB, 8 * GIB))


@pytest.mark.usefixtures("gpu")
def test_device_fields_are_gib_and_percent() -> None:
    fields = read_memory(CUDA).to_dict()
    assert {name: fields[name] for name in list(fields)[4:]} == {
        "device_allocated_gib": 1, "device_reserved_gib": 4, "device_peak_allocated_gib": 3,
        "device_peak_reserved_gib": 5, "device_total_gib": 8, "device_percent": 75, "allocation_retries": 6,
        "out_of_memory_count": 7,
    }  # fmt: skip


@pytest.mark.usefixtures("gpu")
def test_reading_does_not_synchronize_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(device: Any = None) -> None:
        pytest.fail("the device was waited for")

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    assert read_memory(CUDA).device_allocated_gib == 1


@pytest.mark.usefixtures("gpu")
def test_fields_of_failing_driver_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    fields = read_memory(CUDA).to_dict()
    assert fields["device_total_gib"] is None
    assert fields["device_percent"] is None
    assert fields["device_allocated_gib"] == 1


def test_unreadable_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied() -> tuple[float, float]:
        raise psutil.AccessDenied(1)

    monkeypatch.setattr("pgat_fast.monitoring.memory.process_memory", denied)
    assert read_memory(CPU).process_gib is None


@pytest.mark.parametrize(
    ("peak", "level"), [(5.39, "ok"), (5.4, "near"), (5.99, "near"), (6.0, "over"), (600.0, "over")]
)
def test_limit_is_near_from_90_percent_and_over_from_100_percent(peak: float, level: str) -> None:
    state = check_limits(MemoryReading(process_gib=0.1, process_peak_gib=peak), {MEMORY_LIMIT: 6.0})
    assert (state.level, state.over) == (level, level == "over")


def test_message_names_setting_values_and_advice() -> None:
    state = check_limits(MemoryReading(process_peak_gib=5.7), {MEMORY_LIMIT: 6.0})
    assert state.message == (
        "peak process memory is 5.700 GiB, 95.0 % of run.memory_limit_gb (6 GiB): lower training.batch_size "
        "(and raise training.gradient_accumulation_steps, for the same optimizer step) or model.seq_len, "
        "or raise the limit"
    )


def test_worse_of_two_limits_counts() -> None:
    reading = MemoryReading(process_peak_gib=9.5, device_peak_allocated_gib=41.0)
    state = check_limits(reading, {MEMORY_LIMIT: 10.0, DEVICE_MEMORY_LIMIT: 40.0})
    assert state.levels == {"run.memory_limit_gb": "near", "run.device_memory_limit_gb": "over"}
    assert state.over
    assert "run.memory_limit_gb (10 GiB)" in state.message
    assert "run.device_memory_limit_gb (40 GiB)" in state.message


def test_level_is_ok_without_limit_or_reading() -> None:
    assert check_limits(MemoryReading(process_peak_gib=1e6), {}).level == "ok"
    assert check_limits(MemoryReading(), {MEMORY_LIMIT: 1.0, DEVICE_MEMORY_LIMIT: 1.0}).levels == {}


def test_release_caches_returns_pages_to_the_system() -> None:
    # Small blocks come from the heap, which glibc keeps; a last one on top of them pins it.
    blocks = [bytes(1000) for _ in range(200_000)]
    pin = bytes(1000)
    cycle: list[Any] = [blocks]
    cycle.append(cycle)
    del blocks, cycle
    before, _ = process_memory()
    release_caches()
    after, _ = process_memory()
    # 200 MB were held; 100 MiB less leaves room for what other blocks on the same pages keep.
    assert before - after > 100 / 1024
    assert len(pin) == 1000


def test_release_caches_logs_device_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", broken)
    release_caches()
    assert "illegal memory access" in caplog.text
