"""Interrupted compilers and leftovers of killed ones, in real processes with a real compiler."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.compile, pytest.mark.multiprocess]

SETTINGS = ["run.compile=on", "training.max_steps=2", "model.seq_len=4", "training.batch_size=1", "run.name=run"]


def start(settings: list[str], output: Path, cache: Path) -> subprocess.Popen[str]:
    """Start `pgat-fast train` in a separate session, as a terminal does, with its output in a file."""
    output.mkdir()
    overrides = [*settings, *SETTINGS, f"run.output={output}"]
    code = "import sys; from pgat_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    with (output / "out").open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-c", code, "train", "--set", *overrides],
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started_processes: list[subprocess.Popen[str]] = []
    yield started_processes
    for process in started_processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def compiles(process: subprocess.Popen[str]) -> bool:
    """Return whether a C++ compiler runs in the session of `process`."""
    for candidate in psutil.process_iter(["name"]):
        with suppress(psutil.Error, ProcessLookupError):
            if candidate.info["name"] == "cc1plus" and os.getsid(candidate.pid) == process.pid:
                return True
    return False


@pytest.mark.timeout(900)
def test_emptied_library_is_logged_and_compiled_again(
    tiny_settings: list[str], tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    for name in ("first", "second"):
        process = start(tiny_settings, tmp_path / name, tmp_path / "cache")
        processes.append(process)
        assert process.wait() == 0, (tmp_path / name / "out").read_text()[-3000:]
        text = (tmp_path / name / "out").read_text()
        assert ("damaged or unfinished files" in text) == (name == "second")
        libraries = sorted((tmp_path / "cache").rglob("*.main.so"), key=lambda path: path.stat().st_mtime)
        assert all(path.stat().st_size for path in libraries)
        libraries[-1].write_bytes(b"")


@pytest.mark.timeout(900)
def test_interrupt_of_compiler_ends_run_in_time_with_short_reason(
    tiny_settings: list[str], tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    process = start(tiny_settings, tmp_path / "out", tmp_path / "cache")
    processes.append(process)
    log_file = tmp_path / "out" / "out"
    while not ("before training" in log_file.read_text() and compiles(process)):
        assert process.poll() is None, log_file.read_text()
        time.sleep(0.05)
    signal_time = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert time.monotonic() - signal_time < 25
    assert "Traceback" not in log_file.read_text()
    status = json.loads((tmp_path / "out" / "run" / "status.json").read_bytes())
    assert status["state"] == "stopped"
    assert len(status["reason"]) < 200
