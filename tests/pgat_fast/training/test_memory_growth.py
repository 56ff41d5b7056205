"""Memory of a long run must not grow."""

import subprocess
import sys

import pytest

WINDOWS = [(start, start + 200) for start in range(500, 1500, 200)]
"""Ranges of steps over which memory is compared, after 500 steps in which allocators reach their size."""

GROWTH = """
import sys
import torch
from pgat_fast import load_config
from pgat_fast.monitoring.memory import process_memory
from pgat_fast.training.run import train
from pgat_fast.training.trainer import Trainer

step = Trainer.train_step
def watched(self, accumulation_group):
    step(self, accumulation_group)
    if self.state.progress.step % 100 == 0:
        print("step", self.state.progress.step, process_memory()[0] * 1024)
Trainer.train_step = watched
train(load_config(None, sys.argv[1:]), progress=False)
"""


@pytest.mark.timeout(600)
@pytest.mark.slow  # thousands of steps
def test_memory_grows_by_less_than_a_megabyte_per_thousand_steps(tiny: list[str]) -> None:
    """Everything is enabled: metrics and memory written at every step, limits, checkpoints every few epochs.

    A leak grows in every window. An allocator that takes or returns some MB of pages once does so in one window, so the
    windows with the largest and the smallest growth are not counted.
    """
    small = [
        "model.use_celestial_graph=false", "data.inputs=log_Open,log_High,log_Low,log_Close,time_delta",
        "model.enc_in=5", "model.dec_in=5", "model.d_model=5", "model.seq_len=4", "model.label_len=2",
        "training.batch_size=2", f"training.max_steps={WINDOWS[-1][1]}", "training.epochs=1000",
        "run.checkpoint_epochs=20", "run.memory_limit_gb=50", "run.metrics_level=debug", "run.memory_level=debug",
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", GROWTH, *tiny, *small], capture_output=True, text=True, check=True, timeout=1000
    )
    lines = [line.split() for line in result.stdout.splitlines() if line.startswith("step ")]
    megabytes = {int(step): float(value) for _, step, value in lines}
    growth = sorted(megabytes[end] - megabytes[start] for start, end in WINDOWS)[1:-1]
    assert sum(growth) / len(growth) < 1.0 * 200 / 1000, megabytes
