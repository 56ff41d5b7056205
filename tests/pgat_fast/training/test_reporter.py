"""Status file of a run."""

from pathlib import Path

import pytest
import torch

from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.monitoring.monitor import Monitor
from pgat_fast.training.reporter import Reporter
from pgat_fast.training.run_folder import read_status, write_status
from pgat_fast.training.state import Progress, RunState


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    monitor = Monitor(tmp_path, torch.device("cpu"), seq_len=3)
    return Reporter(tmp_path, monitor, SingleProcess(), RunState(Progress()), 2, [4, 3, 5])


def test_start_that_fails_early_does_not_take_over_run_of_other_job(
    reporter: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "new job")
    reporter.write_status("failed")
    assert read_status(tmp_path)["job"] is None
    write_status(tmp_path, "running", job="old job")
    reporter.write_status("failed")
    assert read_status(tmp_path)["job"] == "old job"
    reporter.state.begun = True
    reporter.write_status("running")
    assert read_status(tmp_path)["job"] == "new job"


def test_status_has_last_epoch_after_training(reporter: Reporter, tmp_path: Path) -> None:
    reporter.state.progress = Progress(epoch=2, step=10)
    reporter.write_status("finished")
    assert (read_status(tmp_path)["epoch"], read_status(tmp_path)["step"]) == (2, 10)


def test_only_first_rank_writes_status(reporter: Reporter, tmp_path: Path) -> None:
    reporter.group.rank = 1
    reporter.write_status("failed")
    assert read_status(tmp_path) == {}
