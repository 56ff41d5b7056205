"""What a run writes while it runs: lines of metrics and memory, and `status.json`."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgat_fast.distributed import environment
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.monitoring.memory import LimitState
from pgat_fast.monitoring.monitor import Monitor
from pgat_fast.training.run_folder import read_status, write_status
from pgat_fast.training.state import RunState

logger = logging.getLogger(__name__)


class Reporter:
    """Writer of the metrics and the status of a run in `folder`; only the first rank writes."""

    def __init__(
        self,
        folder: Path,
        monitor: Monitor,
        group: SingleProcess,
        state: RunState,
        epochs: int,
        batch_shape: Sequence[int],
    ) -> None:
        """Store what the lines contain: the number of epochs of the run, and the shape of a batch, [B, S, F]."""
        self.folder, self.monitor, self.group, self.state = folder, monitor, group, state
        self.epochs, self.batch_shape = epochs, batch_shape
        self._counted_since, self._shard_windows = time.monotonic(), 0

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 1; that of the last one when all are complete."""
        return min(self.state.progress.epoch + 1, self.epochs)

    def record(self, stage: str, **values: Any) -> None:
        """Write a line of metrics; see `Monitor.record`."""
        step = self.state.progress.step
        self.monitor.record(stage, epoch=self.epoch, step=step, batch_shape=self.batch_shape, **values)

    def resume_clock(self) -> None:
        """Leave the time since the last step out of the speed."""
        self.monitor.resume_clock()
        self._counted_since, self._shard_windows = time.monotonic(), 0

    def count_step(self, windows: int, shard_windows: int, values: Callable[[], Mapping[str, Any]]) -> LimitState:
        """Count the optimizer step just taken, and write lines if they are due; see `Monitor.step`.

        `windows` are those of all ranks, `shard_windows` those of this rank.
        """
        progress = self.state.progress
        limits = self.monitor.step(progress.epoch + 1, progress.step, self.batch_shape, windows, values)
        self._shard_windows += shard_windows
        if progress.step % self.monitor.interval == 0 and self.group.size > 1:
            self._record_ranks()
        return limits

    def _record_ranks(self) -> None:
        """Record the memory use and speed of every rank, and their sums."""
        now = time.monotonic()
        rate = self._shard_windows / (now - self._counted_since)
        self._counted_since, self._shard_windows = now, 0
        keys = ("process_gib", "device_allocated_gib", "windows_per_second")
        reading = self.monitor.reading() | {"windows_per_second": rate}
        ranks = self.group.all_gather({key: reading.get(key) for key in keys})
        total = {key: sum(rank[key] or 0.0 for rank in ranks) for key in keys}
        self.record("ranks", ranks=ranks, total=total)

    def peaks(self) -> dict[str, float | None]:
        """Return the highest memory use of all processes of the run, in GiB."""
        peaks, earlier = dict(self.monitor.peaks()), self.state.progress.peaks
        for key in ("peak_process_gib", "peak_device_gib"):
            values = [value for value in (peaks.get(key), earlier.get(key)) if value is not None]
            peaks[key] = max(values, default=None)
        return peaks

    def write_status(self, state: str, **more: Any) -> None:
        """Write `status.json`; see `run_folder.write_status`. A failure is only logged."""
        if not self.group.is_main:
            return
        # Keep the recorded job until the run has begun: a restart must not resume a run that no start has begun.
        job = environment.job_id() if self.state.begun else read_status(self.folder).get("job")
        position = {"stage": self.state.stage, "epoch": self.epoch, "step": self.state.progress.step, "job": job}
        try:
            write_status(self.folder, state, **position, **more)
        except OSError as error:
            logger.error("%s/status.json cannot be written: %s", self.folder, error)
