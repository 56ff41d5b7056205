"""`pgat-fast train --devices N`, as users start it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pgat_fast.distributed.launch import environment_variables
from pgat_fast.training.run_folder import read_status
from tests.pgat_fast.training.runs import newest

ROOT = Path(__file__).parents[3]
ENDLESS = [
    "training.epochs=100000", "training.patience=100000", "run.checkpoint_epochs=1", "run.log_interval=1",
    "run.compile=off",
]  # fmt: skip


class Command:
    """The command as a process; `lines` is its output to standard error so far. Its environment identifies a rank."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.popen = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self.lines.extend(iter(self.popen.stderr.readline, ""))

    def wait_for(self, pattern: str, seconds: float = 240, after: int = 0) -> None:
        """Wait until a line from number `after` on matches `pattern`; fail if the process ends or the time is over."""
        deadline = time.monotonic() + seconds
        while not any(re.search(pattern, line) for line in self.lines[after:]):
            assert self.popen.poll() is None, "".join(self.lines)
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.002)

    def end(self, seconds: float = 60) -> int:
        """Wait for the end of the process; return its exit code."""
        code = self.popen.wait(timeout=seconds)
        self.reader.join()
        return code

    def rank(self, number: int) -> psutil.Process:
        for process in psutil.Process(self.popen.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.environ().get("RANK") == str(number):
                    return process
        raise AssertionError(f"rank {number} does not run")

    def kill(self) -> None:
        if self.popen.poll() is None:
            for process in psutil.Process(self.popen.pid).children(recursive=True):
                process.kill()
            self.popen.kill()
        self.reader.join()


@pytest.fixture
def command(tiny: list[str]) -> Iterator[Command]:
    arguments = ["train", "--devices", "2", "--restarts", "2", "--set", *tiny, *ENDLESS]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    command = Command(
        [sys.executable, "-m", "pgat_fast", *arguments], {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    )
    yield command
    command.kill()


@pytest.mark.multiprocess
def test_a_rank_that_dies_restarts_the_job_and_a_signal_to_the_command_does_not(
    command: Command, tmp_path: Path
) -> None:
    command.wait_for(r"epoch 2, step 1 of")
    command.rank(1).kill()
    command.wait_for(r"resumed from .*: epoch")
    line_count = len(command.lines)
    command.wait_for(r"epoch \d+, step \d+ of", after=line_count)
    command.popen.send_signal(signal.SIGUSR1)
    assert command.end() == 128 + signal.SIGUSR1, "".join(command.lines)
    assert not any("resumed from" in line for line in command.lines[line_count:]), "one restart is left"
    (folder,) = (tmp_path / "runs").iterdir()
    status = read_status(folder)
    assert (status["state"], status["reason"]) == ("stopped", "SIGUSR1")
    assert newest(folder).about["step"] == status["step"]


def test_environment_variables_of_ranks_are_restored_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    previous = dict(os.environ)
    with environment_variables({"OMP_NUM_THREADS": "1", "PGAT_FAST_NEW": "x"}):
        assert (os.environ["OMP_NUM_THREADS"], os.environ["PGAT_FAST_NEW"]) == ("1", "x")
    assert dict(os.environ) == previous
