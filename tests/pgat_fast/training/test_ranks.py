"""Several processes train one model: the same numbers for every number of them, one stop for all, none left waiting."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pgat_fast import exit_codes, load_config
from pgat_fast.errors import ConfigError
from pgat_fast.training.run_folder import read_status
from pgat_fast.world import World
from tests.pgat_fast.training.runs import newest
from tests.pgat_fast.training.watched import Watched

ROOT = Path(__file__).parents[3]
EXACT = ROOT / "tests" / "pgat_fast" / "training" / "exact_train.py"
OWN = [
    "training.max_steps=20", "training.epochs=50", "training.warmup_epochs=0", "training.patience=50",
    "training.batch_size=4", "training.gradient_accumulation_steps=2", "training.learning_rate=1e-5",
    "model.dropout=0", "run.compile=off", "run.rank_timeout_seconds=40",
]  # fmt: skip
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))}


def train(ranks: int, folder: Path, settings: list[str], *more: str) -> str:
    """By `exact_train.py` under torchrun, as anybody starts several ranks; what they wrote to standard error."""
    own = [f"run.output={folder.parent}", f"run.name={folder.name}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, str(EXACT), "train", "--quiet", *more, "--set", *settings, *own],
        cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, **ENVIRONMENT}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return newest(folder).weights


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, weight in expected.items():
        assert (found[name] - weight).abs().max() <= 1e-6 * max(1.0, float(weight.abs().max())), name


@pytest.fixture(scope="module")
def settings(tiny_settings: list[str]) -> list[str]:
    return [*tiny_settings, *OWN]


@pytest.fixture(scope="module")
def alone(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "alone"
    train(1, folder, settings)
    return folder


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.multiprocess)])
def test_any_number_of_ranks_trains_the_same_weights(
    ranks: int, settings: list[str], alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(ranks, folder, settings)
    assert_close(weights(folder), weights(alone))
    ours, theirs = results(folder), results(alone)
    assert ours["validation_losses"] == pytest.approx(theirs["validation_losses"], rel=1e-6)
    assert ours["train_losses"] == pytest.approx(theirs["train_losses"], rel=1e-6)
    assert (ours["ranks"], theirs["ranks"]) == (ranks, 1)
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}, "one set of files"


@pytest.mark.multiprocess
def test_a_run_goes_on_with_another_number_of_ranks(settings: list[str], alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(2, folder, [*settings, "training.max_steps=7"])
    assert read_status(folder)["step"] == 7
    train(3, folder, settings, "--resume")
    assert_close(weights(folder), weights(alone))


@pytest.mark.multiprocess
def test_a_limit_of_time_ends_all_of_them(settings: list[str], tmp_path: Path) -> None:
    folder, limits = tmp_path / "run", ["training.max_steps=null", "training.epochs=100000", "training.patience=100000"]
    train(2, folder, [*settings, *limits, "training.max_minutes=0.05", "run.checkpoint_minutes=0.01"])
    assert results(folder)["training_ended"] == "training.max_minutes 0.05 are over"
    saved = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"checkpoint"' in line]
    assert len(saved) > 3, "by the minutes, too"


@pytest.mark.compile
@pytest.mark.multiprocess
@pytest.mark.timeout(1200)
def test_compiled_ranks_train_the_same_weights(settings: list[str], alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = train(2, folder, [*settings, "run.compile=on"])
    assert results(folder)["compiled"]
    assert len(re.findall("compiled graphs: [1-9]", said)) == 2, said
    assert_close(weights(folder), weights(alone))


class Started(Watched):
    """`pgat-fast train --devices 2`, or another command that starts it, that trains until it is stopped."""

    def __init__(self, folder: Path, settings: list[str], *more: str, begin: list[str] | None = None) -> None:
        own = [f"run.output={folder.parent}", f"run.name={folder.name}", "training.max_steps=null"]
        own += ["training.epochs=100000", "training.patience=100000", "run.checkpoint_epochs=1", "run.log_interval=1"]
        self.folder = folder
        begin = begin or ["-m", "pgat_fast", "train", "--devices", "2"]
        super().__init__(
            [sys.executable, *begin, *more, "--set", *settings, *own], environment={**os.environ, **ENVIRONMENT}
        )

    def rank(self, number: int) -> psutil.Process:
        return next(process for process in self.processes() if process.environ().get("RANK") == str(number))

    def processes(self) -> list[psutil.Process]:
        """Those that it has started and that can be asked."""
        found = []
        for process in psutil.Process(self.popen.pid).children(recursive=True):
            with suppress(psutil.Error):
                process.environ()
                found.append(process)
        return found

    def kill(self) -> None:
        if self.popen.poll() is None:
            for process in psutil.Process(self.popen.pid).children(recursive=True):
                process.kill()
            self.popen.kill()
        self.reader.join()


@pytest.fixture
def started(settings: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Started]:
    run = Started(tmp_path / "run", settings, *getattr(request, "param", ()))
    yield run
    run.kill()


@pytest.mark.multiprocess
def test_a_signal_to_one_rank_stops_all_of_them_at_one_step(started: Started) -> None:
    started.wait_for(r"epoch 2, step 1 of")
    started.rank(1).send_signal(signal.SIGUSR1)
    assert started.end() == 128 + signal.SIGUSR1, "".join(started.lines)
    status = read_status(started.folder)
    assert (status["state"], status["reason"]) == ("stopped", "SIGUSR1")
    assert newest(started.folder).about["step"] == status["step"]


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

SLOW = """
import sys, time
from pgat_fast.cli import main
from pgat_fast.training.trainer import Trainer
save = Trainer.save_what_there_is
def slow(self, snapshot):
    time.sleep(2 * self.world.is_main)
    save(self, snapshot)
Trainer.save_what_there_is = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.multiprocess
def test_the_others_wait_until_the_first_rank_has_saved(settings: list[str], tmp_path: Path) -> None:
    """torchrun ends all of them as soon as one has ended."""
    program = tmp_path / "slow.py"
    program.write_text(SLOW)
    started = Started(tmp_path / "run", settings, begin=[*TORCHRUN, str(program), "train"])
    try:
        started.wait_for(r"epoch 2, step 1 of")
        started.rank(1).send_signal(signal.SIGUSR1)
        started.end()
        status = read_status(started.folder)
        assert (status["state"], status["reason"]) == ("stopped", "SIGUSR1"), "".join(started.lines)
        assert newest(started.folder).about["step"] == status["step"]
    finally:
        started.kill()


@pytest.mark.multiprocess
def test_a_signal_to_the_command_stops_all_of_them(started: Started) -> None:
    started.wait_for(r"epoch 2, step 1 of")
    started.popen.send_signal(signal.SIGUSR1)
    assert started.end() == 128 + signal.SIGUSR1, "".join(started.lines)
    status = read_status(started.folder)
    assert (status["state"], status["reason"]) == ("stopped", "SIGUSR1")
    assert newest(started.folder).about["step"] == status["step"]


@pytest.mark.multiprocess
@pytest.mark.parametrize("started", [("--restarts", "1")], indirect=True)
def test_a_stop_is_no_reason_to_start_again(started: Started) -> None:
    started.wait_for(r"epoch 2, step 1 of")
    started.rank(0).send_signal(signal.SIGUSR1)
    assert started.end() == 128 + signal.SIGUSR1, "".join(started.lines)
    assert read_status(started.folder)["state"] == "stopped"
    assert not any("resumed from" in line for line in started.lines)


LONG = """
import sys, time
from pgat_fast.cli import main
from pgat_fast.training import trainer
trainer.PATIENCE = 1.0
step = trainer.Trainer.train_step
def long(self, cycle):
    time.sleep(6 * (self.progress.step == 5))
    step(self, cycle)
trainer.Trainer.train_step = long
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.multiprocess
def test_a_stop_in_a_long_step_is_no_reason_to_start_again(settings: list[str], tmp_path: Path) -> None:
    """The first rank saves and leaves from within it; the other one finds it gone."""
    program = tmp_path / "long.py"
    program.write_text(LONG)
    started = Started(tmp_path / "run", settings, begin=[*TORCHRUN, "--max-restarts", "1", str(program), "train"])
    try:
        started.wait_for(r"epoch 2, step 2 of")  # step 5; the next one is long
        started.rank(0).send_signal(signal.SIGUSR1)
        started.end()
        assert not any("resumed from" in line for line in started.lines), "".join(started.lines)
        status = read_status(started.folder)
        assert (status["state"], status["step"]) == ("stopped", 5), status
        assert newest(started.folder).about["step"] == 5
    finally:
        started.kill()


@pytest.mark.multiprocess
def test_what_one_rank_alone_cannot_do_ends_all_for_good(settings: list[str], tmp_path: Path) -> None:
    """Only the first makes folders: the other one learns why it is gone."""
    (tmp_path / "taken").write_text("")
    started = Started(tmp_path / "taken" / "run", settings, "--restarts", "3")
    try:
        assert started.end() == exit_codes.WRONG_INPUT
        said = "".join(started.lines)
        assert said.count("cannot make a folder there") == 1, said
        assert "another rank has ended the run for good" in said
    finally:
        started.kill()


@pytest.mark.multiprocess
@pytest.mark.parametrize("started", [("--restarts", "1")], indirect=True)
def test_a_rank_that_dies_ends_the_others_and_they_go_on_from_the_last_checkpoint(started: Started) -> None:
    started.wait_for(r"epoch 2, step 1 of")
    began = time.monotonic()
    started.rank(1).kill()
    started.wait_for(r"resumed from .*: epoch")
    assert time.monotonic() - began < 60
    started.popen.send_signal(signal.SIGTERM)
    assert started.end() == 128 + signal.SIGTERM
    assert list(started.folder.parent.iterdir()) == [started.folder], "no second run"


@pytest.mark.multiprocess
def test_ranks_of_two_machines_go_on_from_the_last_checkpoint(settings: list[str], tmp_path: Path) -> None:
    """Each counts its own restarts, and one need not have counted any."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    begin = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1"]
    begin += ["--rdzv-backend", "c10d", "--rdzv-id", "two", "--rdzv-endpoint", f"localhost:{port}", "-m", "pgat_fast"]
    machines = [Started(tmp_path / "run", settings, begin=[*begin, "train"]) for _ in range(2)]
    try:
        main = wait_for_one(machines, r"epoch 2, step 1 of")
        other = machines[1 - machines.index(main)]
        other.rank(1).kill()
        wait_for_one(machines, r"resumed from .*: epoch")
        other.rank(1).send_signal(signal.SIGUSR1)
        codes = {machine.end(seconds=30) for machine in machines}
        assert len(codes) == 1, "0 where one of them would start again"
        assert read_status(tmp_path / "run")["state"] == "stopped"
        assert list(tmp_path.iterdir()) == [tmp_path / "run"], "no second run"
    finally:
        for machine in machines:
            machine.kill()


def wait_for_one(machines: list[Started], pattern: str, seconds: float = 240) -> Started:
    """The one that writes a line that matches."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for machine in machines:
            if any(re.search(pattern, line) for line in machine.lines):
                return machine
        time.sleep(0.01)
    raise AssertionError("".join(line for machine in machines for line in machine.lines))


@pytest.mark.multiprocess
def test_a_rank_that_hangs_is_named(settings: list[str], tmp_path: Path) -> None:
    started = Started(tmp_path / "run", [*settings, "run.rank_timeout_seconds=4"])
    try:
        started.wait_for(r"epoch 2, step 1 of")
        started.rank(1).suspend()
        started.wait_for(
            r"rank 0 of 2 waits for others in vain \(limit 4 s.*: rank 1 does not answer, last seen at step \d+"
        )
        hung = started.rank(1)
        hung.resume()
        assert started.end() != 0
        assert read_status(started.folder)["state"] == "failed"
    finally:
        started.kill()


# --- without processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_shares_are_all_windows_once_and_their_means_weigh_what_they_hold(size: int) -> None:
    indices = torch.arange(100, 107)
    ranks = [World(rank, size) for rank in range(size)]
    shares = [rank.share_of(indices) for rank in ranks]
    assert sorted(torch.cat(shares).tolist()) == indices.tolist()
    mean = sum(float(share.double().mean()) * rank.weight_of(7) for share, rank in zip(shares, ranks, strict=True))
    assert mean / size == pytest.approx(103)


def test_more_ranks_than_windows_are_refused(tiny: list[str]) -> None:
    from pgat_fast.training.stop import Stop
    from pgat_fast.training.trainer import Trainer

    with pytest.raises(ConfigError, match=r"training\.batch_size 4 is the batch of all 5 ranks together"):
        Trainer(load_config(None, tiny), None, Stop(), progress=False, world=World(0, 5))


def test_a_stop_is_agreed_within_a_validation(tiny: list[str], tmp_path: Path) -> None:
    from pgat_fast.errors import StopRequested
    from pgat_fast.training.stop import Stop
    from pgat_fast.training.trainer import Trainer

    class Told(World):
        asked = 0

        def heard(self) -> list[str]:
            self.asked += 1
            return ["stop SIGUSR1"] if self.asked == 2 else super().heard()  # the other rank has got a signal

    world = Told(0, 2)
    trainer = Trainer(load_config(None, tiny), None, Stop(), progress=False, world=world)
    with pytest.raises(StopRequested, match="SIGUSR1"):
        trainer.run(tmp_path)
    assert (world.asked, trainer.stage) == (2, "validation")
