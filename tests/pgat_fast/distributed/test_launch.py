"""`pgat-fast train --devices N`, as users start it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pgat_fast.distributed.launch import environment_variables
from pgat_fast.training.run_folder import read_status
from tests.pgat_fast.training.runs import newest
from tests.pgat_fast.training.watched import ROOT, Watched

ENDLESS = [
    "training.epochs=100000", "training.patience=100000", "run.checkpoint_epochs=1", "run.log_interval=1",
    "run.compile=off",
]  # fmt: skip


class Command(Watched):
    """The command, its ranks found by their environment."""

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
