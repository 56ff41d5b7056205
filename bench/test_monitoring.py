"""Cost of monitoring an optimizer step, in microseconds, averaged over intervals of 25 steps.

Compare it with the time of a training step, of which it may take 0.5 %: `seconds` of `bench.step`, or
`seconds_per_step` in the metrics.jsonl of a run. `values` reads a scalar, as the trainer does; on a CPU that does not
synchronize. Lines are written to a real file system.
"""

from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.suite import median_seconds
from pgat_fast.monitoring.monitor import Monitor

INTERVAL, INTERVALS = 25, 40
STEPS = INTERVAL * INTERVALS


@pytest.mark.parametrize("tensorboard", [False, True], ids=["files", "tensorboard"])
@pytest.mark.parametrize("limit", [None, 1e6], ids=["unlimited", "limited"])
def test_monitored_step(benchmark: BenchmarkFixture, tmp_path: Path, limit: float | None, tensorboard: bool) -> None:
    loss = torch.tensor(0.5, dtype=torch.float64)
    step = 0

    def values() -> dict[str, float]:
        return {"loss": loss.item(), "learning_rate": 1e-3, "gradient_norm": loss.item()}

    with Monitor(
        tmp_path,
        torch.device("cpu"),
        seq_len=250,
        interval=INTERVAL,
        tensorboard=tensorboard,
        memory_limit_gb=limit,
    ) as monitor:

        def train() -> None:
            nonlocal step
            for _ in range(STEPS):
                step += 1
                monitor.step(1, step, [16, 250, 118], 16, values)

        benchmark.pedantic(train, rounds=10, warmup_rounds=1)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == INTERVALS * 11
    benchmark.extra_info["microseconds_per_step_median"] = median_seconds(benchmark) / STEPS * 1e6
