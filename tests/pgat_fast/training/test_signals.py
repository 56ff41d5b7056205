"""Signals in every phase of a real process: checkpoint, exit code, and resumption as if there had been no signal."""

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgat_fast import load_config
from pgat_fast.training.checkpoint import newest_good
from pgat_fast.training.run_folder import read_status
from tests.own_process import seconds_of_children
from tests.pgat_fast.training.runs import assert_same, outcome, run
from tests.pgat_fast.training.watched import Watched

ROOT = Path(__file__).parents[3]

LONG = [
    "data.validation_length=120", "data.test_length=120", "training.batch_size=1", "training.epochs=1",
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


class Process(Watched):
    """`pgat-fast train` in a separate process."""

    def __init__(self, *arguments: str, code: str = "") -> None:
        start = f"import sys; {code}from pgat_fast.cli import main; sys.exit(main(sys.argv[1:]))"
        super().__init__([sys.executable, "-c", start, "train", *arguments])

    def stop(self, number: int) -> float:
        """Send a signal, wait for the end of the process, and return the seconds that it took."""
        started = time.monotonic()
        self.popen.send_signal(number)
        self.end()
        return time.monotonic() - started


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started_processes: list[Process] = []
    yield started_processes
    for process in started_processes:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()
        process.reader.join()


# All signals share one handler and all phases one exit path, so each is tested once.
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("name", "phase"), [("SIGTERM", "training"), ("SIGINT", "validation"), ("SIGUSR1", "evaluation")]
)
def test_signal_saves_checkpoint_and_ends_with_its_code_and_run_resumes(
    settings: list[str], tmp_path: Path, processes: list[Process], whole: dict[str, object], name: str, phase: str
) -> None:
    processes.append(process := Process("--set", *settings, f"run.output={tmp_path}", "run.name=run"))
    process.wait_for(PHASES[phase])
    seconds = process.stop(getattr(signal, name))
    assert process.popen.returncode == 128 + getattr(signal, name), "".join(process.lines)
    assert seconds < 25
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("stopped", 128 + getattr(signal, name))
    assert status["reason"].startswith(name)
    loaded = newest_good(tmp_path / "run" / "checkpoints")
    assert loaded is not None
    assert loaded[1].about["step"] >= (7 if phase == "training" else 16)
    assert "Traceback" not in "".join(process.lines)
    run(settings, tmp_path / "run", resume=tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), whole)


@pytest.mark.multiprocess
@pytest.mark.parametrize("delay", [0.3, 1.0, 2.0])
def test_signal_at_start_ends_process_with_its_code(
    settings: list[str], tmp_path: Path, processes: list[Process], delay: float
) -> None:
    """The signal comes before there is anything to save, while python, torch or the data are loaded."""
    processes.append(process := Process("--set", *settings, f"run.output={tmp_path}", "run.name=run"))
    time.sleep(delay)
    assert process.stop(signal.SIGTERM) < 25
    assert process.popen.returncode in (143, -signal.SIGTERM), "".join(process.lines)
    if delay >= 1.0:  # by then our handlers are installed, unless the machine is very busy
        assert process.popen.returncode == 143 or not (tmp_path / "run").exists()


@pytest.mark.multiprocess
def test_signal_in_long_step_saves_state_before_it(tiny: list[str], tmp_path: Path, processes: list[Process]) -> None:
    """One optimizer step takes longer than the limit for the main thread to stop (half a second here)."""
    slow = [
        "model.seq_len=20", "model.d_model=208", "model.n_heads=8", "model.combiner=hierarchical",
        "training.batch_size=6", "training.gradient_accumulation_steps=1", "training.epochs=4",
    ]  # fmt: skip
    code = "import pgat_fast.training.control as c; c.PATIENCE = 0.5; "
    processes.append(process := Process("--set", *tiny, *slow, f"run.output={tmp_path}", "run.name=run", code=code))
    process.wait_for("before training: validation loss")
    time.sleep(0.3)
    seconds = process.stop(signal.SIGTERM)
    assert process.popen.returncode == 143, "".join(process.lines)
    assert seconds < 25
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("stopped", 143)
    loaded = newest_good(tmp_path / "run" / "checkpoints")
    assert loaded is not None
    assert loaded[1].about["step"] == status["step"]


@pytest.mark.multiprocess
def test_second_signal_ends_process_at_once(settings: list[str], tmp_path: Path, processes: list[Process]) -> None:
    processes.append(process := Process("--set", *settings, f"run.output={tmp_path}", "run.name=run"))
    process.wait_for(PHASES["training"])
    process.popen.send_signal(signal.SIGTERM)
    seconds = process.stop(signal.SIGINT)
    assert process.popen.returncode in (130, 143)
    assert seconds < 10  # mostly the end of the interpreter on a busy machine


@pytest.mark.multiprocess
def test_second_process_is_rejected_within_a_second(
    settings: list[str], tmp_path: Path, processes: list[Process]
) -> None:
    processes.append(first := Process("--set", *settings, f"run.output={tmp_path}", "run.name=run"))
    first.wait_for(PHASES["training"])
    seconds_before = seconds_of_children()
    processes.append(second := Process("--resume", str(tmp_path / "run"), "--set", *settings))
    assert second.popen.wait(timeout=30) == 2
    seconds = seconds_of_children() - seconds_before
    second.reader.join()
    assert "another process" in "".join(second.lines)
    assert str(first.popen.pid) in "".join(second.lines)
    # Includes the start of python and reading the configuration, but not importing torch.
    assert seconds < 1.0, f"{seconds:.2f} s"
    assert first.stop(signal.SIGTERM) < 25


def test_resume_auto_resumes_newest_run_or_begins_one(
    tiny_settings: list[str], tmp_path: Path, processes: list[Process]
) -> None:
    settings, runs = [*tiny_settings, "run.log_interval=1"], tmp_path / "runs"
    run(settings, tmp_path / "whole")
    arguments = ["--resume", "--set", *settings, f"run.output={runs}", "run.name=run"]
    processes.append(first := Process(*arguments))
    first.wait_for(r"epoch 2, step 1 of")
    first.stop(signal.SIGKILL)
    assert any("a new one" in line for line in first.lines)
    processes.append(second := Process(*arguments))
    assert second.popen.wait(timeout=300) == 0, "".join(second.lines)
    assert [path.name for path in runs.iterdir()] == ["run"]
    assert_same(outcome(runs / "run"), outcome(tmp_path / "whole"))
    assert load_config(runs / "run" / "config.yaml").run.name == "run"
    lines = [json.loads(line) for line in (runs / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines].count("resume") == 1
