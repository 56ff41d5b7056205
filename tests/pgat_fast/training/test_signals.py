"""Signals in every phase of a process: checkpoint, exit code, and resumption as if there had been no signal."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pgat_fast import load_config
from pgat_fast.training import stopping
from pgat_fast.training.checkpoint import newest_good
from pgat_fast.training.run_folder import read_status
from tests.forked_command import ForkedCommand
from tests.own_process import seconds_of_children
from tests.pgat_fast.training.runs import assert_same, outcome, run

COMMAND = [sys.executable, "-m", "pgat_fast", "train"]

LONG = [
    "data.validation_length=40", "data.test_length=40", "training.batch_size=1", "training.epochs=1",
    "training.max_steps=16", "run.log_interval=1", "run.plots=false",
]  # fmt: skip
"""Batches of one window make every phase long enough for a signal to arrive in it."""

PHASES = {
    "training": r"epoch 1, step 7 of",
    "validation": r"epoch 1, step 16 of",
    "evaluation": r"training ends: ",
}
"""Pattern of the log line at which the phase has begun or is about to begin."""


@pytest.fixture(scope="module")
def settings(tiny_settings: list[str], long_data_file: Path) -> list[str]:
    return [*tiny_settings, *LONG, f"data.path={long_data_file}"]


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(settings, folder)
    return outcome(folder)


Start = Callable[..., ForkedCommand]


# All signals share one handler and all phases one exit path, so each is tested once.
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("name", "phase"), [("SIGTERM", "training"), ("SIGINT", "validation"), ("SIGUSR1", "evaluation")]
)
def test_signal_saves_checkpoint_and_ends_with_its_code_and_run_resumes(
    settings: list[str], tmp_path: Path, start: Start, whole: dict[str, object], name: str, phase: str
) -> None:
    process = start("--set", *settings, f"run.output={tmp_path}", "run.name=run")
    process.wait_for(PHASES[phase])
    assert process.stop(signal.Signals[name]) < 25
    assert process.exit_code() == 128 + signal.Signals[name], process.text
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("stopped", 128 + signal.Signals[name])
    assert status["reason"].startswith(name)
    loaded = newest_good(tmp_path / "run" / "checkpoints")
    assert loaded is not None
    assert loaded[1].about["step"] >= (7 if phase == "training" else 16)
    assert "Traceback" not in process.text
    run(settings, tmp_path / "run", resume=tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), whole)


@pytest.mark.multiprocess
@pytest.mark.parametrize("delay", [0.3, 1.0, 2.0])
def test_signal_at_start_ends_process_with_its_code(settings: list[str], tmp_path: Path, delay: float) -> None:
    """The signal comes before there is anything to save, while python, torch or the data are loaded."""
    arguments = ["--set", *settings, f"run.output={tmp_path}", "run.name=run"]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=25)
    assert process.returncode in (143, -signal.SIGTERM), log
    if delay >= 1.0:  # by then our handlers are installed, unless the machine is very busy
        assert process.returncode == 143 or not (tmp_path / "run").exists()


def limit_patience() -> None:
    """Give the main thread half a second to stop."""
    stopping.PATIENCE = 0.5


@pytest.mark.multiprocess
def test_signal_in_long_step_saves_state_before_it(tiny: list[str], tmp_path: Path, start: Start) -> None:
    """One optimizer step takes longer than the limit for the main thread to stop."""
    slow = [
        "model.seq_len=20", "model.d_model=208", "model.n_heads=8", "model.combiner=hierarchical",
        "training.batch_size=6", "training.gradient_accumulation_steps=1", "training.epochs=4",
    ]  # fmt: skip
    process = start("--set", *tiny, *slow, f"run.output={tmp_path}", "run.name=run", prepare=limit_patience)
    process.wait_for("before training: validation loss")
    time.sleep(0.3)
    assert process.stop(signal.SIGTERM) < 25
    assert process.exit_code() == 143, process.text
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("stopped", 143)
    loaded = newest_good(tmp_path / "run" / "checkpoints")
    assert loaded is not None
    assert loaded[1].about["step"] == status["step"]


@pytest.mark.multiprocess
def test_second_signal_ends_process_at_once(settings: list[str], tmp_path: Path, start: Start) -> None:
    process = start("--set", *settings, f"run.output={tmp_path}", "run.name=run")
    process.wait_for(PHASES["training"])
    process.send(signal.SIGTERM)
    seconds = process.stop(signal.SIGINT)
    assert process.exit_code() in (130, 143)
    assert seconds < 10  # mostly the end of the interpreter on a busy machine


@pytest.mark.multiprocess
def test_second_process_is_rejected_within_a_second(settings: list[str], tmp_path: Path, start: Start) -> None:
    first = start("--set", *settings, f"run.output={tmp_path}", "run.name=run")
    first.wait_for(PHASES["training"])
    seconds_before = seconds_of_children()
    arguments = ["--resume", str(tmp_path / "run"), "--set", *settings]
    second = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=30, check=False)
    seconds = seconds_of_children() - seconds_before
    assert second.returncode == 2
    assert "another process" in second.stderr
    assert str(first.process.pid) in second.stderr
    # Includes the start of python and reading the configuration, but not importing torch.
    assert seconds < 1.0, f"{seconds:.2f} s"
    assert first.stop(signal.SIGTERM) < 25


def test_resume_auto_resumes_newest_run_or_begins_one(tiny_settings: list[str], tmp_path: Path, start: Start) -> None:
    settings, runs = [*tiny_settings, "run.log_interval=1"], tmp_path / "runs"
    run(settings, tmp_path / "whole")
    arguments = ["--resume", "--set", *settings, f"run.output={runs}", "run.name=run"]
    first = start(*arguments)
    first.wait_for(r"epoch 2, step 1 of")
    first.stop(signal.SIGKILL)
    assert "no run named run" in first.text
    second = start(*arguments)
    assert second.exit_code() == 0, second.text
    assert [path.name for path in runs.iterdir()] == ["run"]
    assert_same(outcome(runs / "run"), outcome(tmp_path / "whole"))
    assert load_config(runs / "run" / "config.yaml").run.name == "run"
    lines = [json.loads(line) for line in (runs / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines].count("resume") == 1
