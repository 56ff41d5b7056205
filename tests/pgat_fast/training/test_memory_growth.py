"""A run that goes on for days must not grow."""

import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 1500
"""After 500 of warm-up, in which allocators find their size."""

GROWTH = """
import sys
import torch
from pgat_fast import load_config
from pgat_fast.monitoring.memory import process_memory
from pgat_fast.training.trainer import Trainer, train

seen = {}
step = Trainer.train_step
def watched(self, cycle):
    step(self, cycle)
    if self.progress.step in (500, %d):
        seen[self.progress.step] = process_memory()[0] * 1024
Trainer.train_step = watched
train(load_config(None, sys.argv[1:]), progress=False)
print(seen[%d] - seen[500])
"""


@pytest.mark.timeout(1200)
@pytest.mark.slow  # thousands of steps
def test_memory_grows_by_less_than_a_megabyte_in_a_thousand_steps(tiny: list[str], tmp_path: Path) -> None:
    """Everything on: both journals at every step, limits, checkpoints every few epochs."""
    small = [
        "model.use_celestial_graph=false", "data.inputs=log_Open,log_High,log_Low,log_Close,time_delta",
        "model.enc_in=5", "model.dec_in=5", "model.d_model=5", "model.seq_len=4", "model.label_len=2",
        "training.batch_size=2", f"training.max_steps={STEPS}", "training.epochs=1000", "run.checkpoint_epochs=20",
        "run.memory_limit_gb=50", "run.metrics_level=debug", "run.memory_level=debug",
    ]  # fmt: skip
    code = GROWTH % (STEPS, STEPS)
    result = subprocess.run(
        [sys.executable, "-c", code, *tiny, *small], capture_output=True, text=True, check=True, timeout=1000
    )
    megabytes = float(result.stdout.split()[-1])
    assert megabytes < 1.0 * (STEPS - 500) / 1000
