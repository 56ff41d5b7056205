"""The production configuration, reduced in size only: a run killed three times ends bitwise equal."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forked_command import ForkedCommand
from tests.pgat_fast.training.runs import assert_same, outcome

ROOT = Path(__file__).parents[3]

SIZES = [
    "model.seq_len=4", "model.label_len=2", "model.pred_len=2", "model.d_model=16",
    "data.validation_length=4", "data.test_length=4", "data.rows=27",
    "training.batch_size=3", "training.epochs=6", "run.checkpoint_minutes=0.02", "run.plots=false",
]  # fmt: skip
"""Smaller tensors, fewer rows and epochs. Combiner blocks, heads, layers, accumulation, schedule, clipping, dropout and
checkpoints every five epochs are those of production; `d_model` 16 is raised to 104, half of that in production."""


@pytest.mark.multiprocess
@pytest.mark.timeout(900)
def test_production_run_killed_three_times_equals_uninterrupted_run(
    tmp_path: Path, long_data_file: Path, start: Callable[..., ForkedCommand]
) -> None:
    def start_run(name: str, *more: str) -> ForkedCommand:
        settings = [*SIZES, f"data.path={long_data_file}", f"run.output={tmp_path}", f"run.name={name}"]
        config = str(ROOT / "configs" / "production_batched.yaml")
        return start(*more, "--config", config, "--set", *settings, "run.log_interval=1")

    whole = start_run("whole")
    killed = start_run("killed")
    for pattern, delay in (("epoch 2, step 2 of", 0.05), ("epoch 4, step 1 of", 0.2), ("epoch 6 of 6", 0.02)):
        killed.wait_for(pattern, seconds=600)
        time.sleep(delay)
        killed.stop(signal.SIGKILL)
        assert killed.exit_code() == -signal.SIGKILL, killed.text
        killed = start_run("killed", "--resume")
        killed.wait_for("resumed from", seconds=60)
    assert killed.exit_code(600) == 0, killed.text
    assert whole.exit_code(600) == 0, whole.text
    assert_same(outcome(tmp_path / "killed"), outcome(tmp_path / "whole"))
