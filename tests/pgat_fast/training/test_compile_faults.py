"""Interrupted compilers and leftovers of killed ones, in real processes with a real compiler."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.forked_command import ForkedCommand

pytestmark = [pytest.mark.compile, pytest.mark.multiprocess]

SETTINGS = ["run.compile=on", "training.max_steps=2", "model.seq_len=4", "training.batch_size=1", "run.name=run"]


Start = Callable[[str], ForkedCommand]


@pytest.fixture
def start_compiled(tiny_settings: list[str], tmp_path: Path, start: Callable[..., ForkedCommand]) -> Start:
    """Return a function that starts a run in an output folder of the given name, with a compile cache of this test.

    It runs in a separate session, as started by a terminal.
    """
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}

    def start_compiled(name: str) -> ForkedCommand:
        arguments = ["--set", *tiny_settings, *SETTINGS, f"run.output={tmp_path / name}"]
        return start(*arguments, prepare=new_session, environment=environment)

    return start_compiled


def new_session() -> None:
    os.setsid()


def compiles(session: int) -> bool:
    """Return whether a C++ compiler runs in `session`."""
    for candidate in psutil.process_iter(["name"]):
        with suppress(psutil.Error, ProcessLookupError):
            if candidate.info["name"] == "cc1plus" and os.getsid(candidate.pid) == session:
                return True
    return False


@pytest.mark.timeout(900)
def test_emptied_library_is_logged_and_compiled_again(start_compiled: Start, tmp_path: Path) -> None:
    for name in ("first", "second"):
        process = start_compiled(name)
        assert process.exit_code(800) == 0, process.text[-3000:]
        assert ("damaged or unfinished files" in process.text) == (name == "second")
        libraries = sorted((tmp_path / "cache").rglob("*.main.so"), key=lambda path: path.stat().st_mtime)
        assert all(path.stat().st_size for path in libraries)
        libraries[-1].write_bytes(b"")


@pytest.mark.timeout(900)
def test_interrupt_of_compiler_ends_run_in_time_with_short_reason(start_compiled: Start, tmp_path: Path) -> None:
    process = start_compiled("out")
    session = process.process.pid
    assert session is not None
    while not ("before training" in process.text and compiles(session)):
        assert process.process.is_alive(), process.text
        time.sleep(0.05)
    signal_time = time.monotonic()
    os.killpg(session, signal.SIGINT)
    assert process.exit_code() == 130
    assert time.monotonic() - signal_time < 25
    assert "Traceback" not in process.text
    status = json.loads((tmp_path / "out" / "run" / "status.json").read_bytes())
    assert status["state"] == "stopped"
    assert len(status["reason"]) < 200
