"""Training in several ranks: any number yields the same weights, all stop at the same step, and none waits forever."""

import json
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest
import torch

from pgat_fast import exit_codes
from pgat_fast.distributed.environment import EXIT_CODE_FILE
from pgat_fast.training import stopping
from pgat_fast.training.checkpoint_saver import CheckpointSaver
from pgat_fast.training.run_folder import read_status
from pgat_fast.training.trainer import Trainer
from tests.forked_command import nothing
from tests.pgat_fast.distributed.rank_processes import Ranks
from tests.pgat_fast.training.exact_train import train_exactly
from tests.pgat_fast.training.runs import newest

SETTINGS = [
    "training.max_steps=20", "training.epochs=50", "training.warmup_epochs=0", "training.patience=50",
    "training.batch_size=4", "training.gradient_accumulation_steps=2", "training.learning_rate=1e-5",
    "model.dropout=0", "run.compile=off", "run.rank_timeout_seconds=40",
]  # fmt: skip
ENDLESS = [
    "training.max_steps=null", "training.epochs=100000", "training.patience=100000", "run.checkpoint_epochs=1",
    "run.log_interval=1",
]  # fmt: skip
RESTARTABLE = {
    "TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_MAX_RESTARTS": "1", "TORCHELASTIC_RESTART_COUNT": "0",
}  # fmt: skip
"""Environment variables that torchrun sets in ranks that it may restart."""


def started(
    ranks: int,
    folder: Path,
    settings: list[str],
    *more: str,
    prepare: Callable[[], None] = nothing,
    environment: Mapping[str, str] | Sequence[Mapping[str, str]] = MappingProxyType({}),
) -> Ranks:
    """Start ranks that train in `folder`."""
    output = [f"run.output={folder.parent}", f"run.name={folder.name}"]
    logs = folder.parent.parent / f"logs-{time.monotonic_ns()}"
    return Ranks(ranks, logs, ["train", *more, "--set", *settings, *output], prepare, environment)


def train(ranks: int, folder: Path, settings: list[str], *more: str) -> list[str]:
    """Train to the end in float64 and without dropout; return what each rank has written to standard error."""
    with started(ranks, folder, settings, *more, prepare=train_exactly) as running:
        codes = running.exit_codes()
        logs = [running.text(rank) for rank in range(ranks)]
    assert codes == [0] * ranks, logs[0][-3000:]
    return logs


def assert_same_weights(folder: Path, expected_folder: Path) -> None:
    weights = newest(folder).weights
    for name, expected in newest(expected_folder).weights.items():
        assert (weights[name] - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max())), name


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


@pytest.fixture(scope="module")
def settings(tiny_settings: list[str]) -> list[str]:
    return [*tiny_settings, *SETTINGS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "run"


@pytest.fixture(scope="module")
def alone(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks") / "runs" / "alone"
    train(1, folder, settings)
    return folder


def test_two_ranks_train_same_weights_as_one_process(settings: list[str], alone: Path, folder: Path) -> None:
    train(2, folder, settings)
    assert_same_weights(folder, alone)
    actual, expected = results(folder), results(alone)
    assert actual["validation_losses"] == pytest.approx(expected["validation_losses"], rel=1e-6)
    assert actual["train_losses"] == pytest.approx(expected["train_losses"], rel=1e-6)
    assert (actual["ranks"], expected["ranks"]) == (2, 1)
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}, "one set of files"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.multiprocess
def test_other_number_of_ranks_resumes_to_same_weights(settings: list[str], alone: Path, folder: Path) -> None:
    """Three ranks get unequal shards of a batch of four."""
    train(2, folder, [*settings, "training.max_steps=7"])
    assert read_status(folder)["step"] == 7
    train(3, folder, settings, "--resume")
    assert_same_weights(folder, alone)


@pytest.mark.multiprocess
def test_time_limit_ends_all_ranks_at_same_step(settings: list[str], folder: Path) -> None:
    limits = [*ENDLESS, "training.max_minutes=0.05", "run.checkpoint_minutes=0.01", "run.checkpoint_epochs=null"]
    train(2, folder, [*settings, *limits])
    assert results(folder)["training_ended"] == "training.max_minutes 0.05 reached"
    checkpoint_lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"checkpoint"' in line]
    assert len(checkpoint_lines) > 2, "by the minutes, too"


@pytest.mark.compile
@pytest.mark.multiprocess
@pytest.mark.timeout(1200)
def test_compiled_ranks_train_same_weights_as_eager_process(settings: list[str], alone: Path, folder: Path) -> None:
    logs = train(2, folder, [*settings, "run.compile=on"])
    assert results(folder)["compiled"]
    assert all(re.search("compiled graphs: [1-9]", log) for log in logs), logs
    assert_same_weights(folder, alone)


def assert_stopped(folder: Path, reason: str = "SIGUSR1") -> None:
    """Assert that the run was stopped and that its newest checkpoint is of the step at which it stopped."""
    status = read_status(folder)
    assert (status["state"], status["reason"].split()[0]) == ("stopped", reason)
    assert newest(folder).about["step"] == status["step"]


def save_slowly() -> None:
    """Make the first rank take two seconds longer to save when the run ends."""
    save = CheckpointSaver.emergency_save

    def slow(self: CheckpointSaver) -> None:
        time.sleep(2 * self.group.is_main)
        save(self)

    CheckpointSaver.emergency_save = slow


@pytest.mark.multiprocess
def test_signal_to_one_rank_stops_all_after_first_has_saved(settings: list[str], folder: Path) -> None:
    """torchrun ends all ranks as soon as one has ended, so no rank may end before the checkpoint is written."""
    with started(2, folder, [*settings, *ENDLESS], prepare=save_slowly) as running:
        running.wait_for(r"epoch 2, step 1 of")
        running.send(1, signal.SIGUSR1)
        running.processes[1].join(120)
        assert_stopped(folder)
        assert running.exit_codes() == [128 + signal.SIGUSR1] * 2, running.text(0)


def train_a_long_step() -> None:
    """Make the step after the fifth take six seconds, and the last resort of the first rank save after one."""
    train_step = Trainer.train_step
    stopping.PATIENCE = 1.0

    def long(self: Trainer, accumulation_group: list[torch.Tensor]) -> None:
        time.sleep(6 * (self.state.progress.step == 5))
        train_step(self, accumulation_group)

    Trainer.train_step = long


@pytest.mark.multiprocess
def test_stop_in_long_step_does_not_restart_job(settings: list[str], folder: Path, tmp_path: Path) -> None:
    """The first rank saves and ends within the step; the other one detects that and reads the reason."""
    code = tmp_path / "code"
    environment = {**RESTARTABLE, EXIT_CODE_FILE: str(code)}
    with started(2, folder, [*settings, *ENDLESS], prepare=train_a_long_step, environment=environment) as running:
        running.wait_for(r"epoch 2, step 2 of")  # step 5, before the long one
        running.send(0, signal.SIGUSR1)
        assert running.exit_codes() == [0, 0], running.text(1)
    assert_stopped(folder)
    assert newest(folder).about["step"] == 5
    assert code.read_text() == str(128 + signal.SIGUSR1)


@pytest.mark.multiprocess
def test_error_of_first_rank_ends_all_with_its_exit_code(settings: list[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with started(2, tmp_path / "taken" / "run", settings) as running:
        assert running.exit_codes() == [exit_codes.WRONG_INPUT] * 2
        assert "cannot make a folder there" in running.text(0)
        assert "rank 0 has failed: see its error message" in running.text(1)


@pytest.mark.multiprocess
def test_ranks_resume_run_of_their_job_after_restart_of_one_machine(settings: list[str], folder: Path) -> None:
    """Each machine counts its own restarts. The loss of one rank ends the other one."""
    with started(2, folder, [*settings, *ENDLESS], environment=RESTARTABLE) as running:
        running.wait_for(r"epoch 2, step 1 of")
        running.send(1, signal.SIGKILL)
        assert running.exit_codes(seconds=60) == [exit_codes.RANK_LOST, -signal.SIGKILL], running.text(0)
    status = read_status(folder)
    assert (status["state"], newest(folder).about["step"]) == ("failed", status["step"])
    (folder.parent / "run-2").mkdir()
    restarted = [RESTARTABLE, {**RESTARTABLE, "TORCHELASTIC_RESTART_COUNT": "1"}]
    with started(2, folder, [*settings, f"training.max_steps={status['step'] + 1}"], environment=restarted) as running:
        assert running.exit_codes() == [0, 0], running.text(0)
        assert re.search(rf"resumed from .*{folder.name}/checkpoints.*, {status['step']} in all", running.text(0))


@pytest.mark.multiprocess
def test_hanging_rank_is_named_and_run_is_saved(settings: list[str], folder: Path) -> None:
    with started(2, folder, [*settings, *ENDLESS, "run.rank_timeout_seconds=4"]) as running:
        running.wait_for(r"epoch 2, step 1 of")
        psutil.Process(running.processes[1].pid).suspend()
        running.processes[0].join(60)
        assert running.processes[0].exitcode == exit_codes.RANK_LOST
        assert re.search(
            r"rank 0 of 2 cannot reach all others \(limit 4 s, .*\): rank 1 does not answer", running.text(0)
        ), running.text(0)
    status = read_status(folder)
    assert (status["state"], newest(folder).about["step"]) == ("failed", status["step"])
