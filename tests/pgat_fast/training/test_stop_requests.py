"""Signals: the first requests a stop, the second ends the process, and the last resort follows without a reaction."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pgat_fast.errors import StopRequested
from pgat_fast.exit_codes import of_signal
from pgat_fast.training.signals import ECHO, SIGNALS, Stop, StopSignals

ASK_OFTEN = """
import signal, sys, time
if "hang up" not in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have ignored it
from pgat_fast.errors import StopRequested
from pgat_fast.training.signals import StopSignals
with StopSignals() as stop:
    stop.patience = 60
    print("ready", flush=True)
    try:
        while True:
            stop.check()
            time.sleep(0.01)
    except StopRequested as error:
        print("stopped by", error, flush=True)
        time.sleep({pause})
"""
NEVER_ASK = """
import sys, time
from pathlib import Path
from pgat_fast.training.signals import StopSignals
with StopSignals() as stop:
    stop.patience = 0.2
    stop.last_resort = lambda name: Path(sys.argv[1]).write_text("saved at " + name)
    print("ready", flush=True)
    hash_me = bytes(500_000_000)
    import hashlib
    while True:
        hashlib.sha256(hash_me)  # C code: Python's own handlers run only after it
"""


def start(code: str, *args: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", SIGNALS)
def test_first_signal_requests_stop_and_process_ends_by_itself(name: str) -> None:
    process = start(ASK_OFTEN.format(pause=0))
    process.send_signal(getattr(signal, name))
    output, _ = process.communicate(timeout=10)
    assert output == f"stopped by {name}\n"
    assert process.returncode == 0


def test_second_signal_ends_process_at_once() -> None:
    process = start(ASK_OFTEN.format(pause=60))
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped by SIGTERM\n"
    process.send_signal(signal.SIGHUP)  # right after the first, so it counts as the same event
    time.sleep(ECHO + 0.2)
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert time.monotonic() - started < 2


def test_process_that_never_checks_saves_by_last_resort_and_ends(tmp_path: Path) -> None:
    process = start(NEVER_ASK, str(tmp_path / "saved"))
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 128 + signal.SIGUSR1
    assert (tmp_path / "saved").read_text() == "saved at SIGUSR1"


def test_first_signal_ends_process_at_once_without_anything_to_save() -> None:
    process = start(NEVER_ASK.replace("stop.patience = 0.2", "").replace("stop.last_resort =", "unused ="))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143


def test_ignored_hangup_stays_ignored() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + ASK_OFTEN.format(pause=0)
    process = start(code, "hang up")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == "stopped by SIGTERM\n"


def test_handlers_are_restored_and_thread_ends() -> None:
    before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    with StopSignals() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before
        stop.check()
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_stop_can_be_requested_without_signals() -> None:
    stop = Stop()
    stop.check()
    stop.request("the test")
    with pytest.raises(StopRequested, match="the test"):
        stop.check()


def test_exit_codes_are_128_plus_signal_number() -> None:
    assert [of_signal(name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")] == [130, 143, 138, 129]
    assert of_signal("the test") == 130
