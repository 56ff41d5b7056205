"""What the trainer tells of a run while it goes: speed and losses in metrics.jsonl, memory in memory.jsonl."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pgat_fast.monitoring.journal import LEVELS, Journal, Level
from pgat_fast.monitoring.memory import (
    DEVICE_MEMORY_LIMIT,
    MEMORY_LIMIT,
    LimitState,
    MemoryReading,
    check_limits,
    read_memory,
)
from pgat_fast.monitoring.tensorboard import TensorBoard

logger = logging.getLogger("pgat_fast.monitoring")

Place = tuple[str, int | None, int | None, Sequence[int] | None]
"""Stage, epoch, step and batch shape of a line."""


class Monitor:
    """Writes the journals of one run, reads memory, watches the limits. A context manager: leaving it closes the files.

    Once it is made no method raises: what cannot be read or written is said once on the logger
    `pgat_fast.monitoring`, and the run goes on. Between two lines it asks nothing of the device.

    The clock of `windows_per_second` runs from step to step. After anything else that takes time (validation, writing
    a checkpoint) call `resume_clock` before the next step begins, so that it does not count.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        seq_len: int,
        interval: int = 25,
        metrics_level: str = "info",
        memory_level: str = "info",
        tensorboard: bool = False,
        memory_limit_gb: float | None = None,
        device_memory_limit_gb: float | None = None,
    ) -> None:
        """Open the journals in `folder`, which exists.

        Args:
            folder: of the run; gets `metrics.jsonl`, `memory.jsonl` and, if asked for, `tensorboard/`.
            device: where the model computes. The peaks that torch keeps of a CUDA device begin anew.
            seq_len: days of history in a window: a sample is one of them.
            interval: optimizer steps between two lines of training.
            metrics_level, memory_level: lowest level that is written: debug (a line for every step, for which the
                device is waited for), info, warning, off.
            tensorboard: write the numbers for TensorBoard too.
            memory_limit_gb, device_memory_limit_gb: GiB that the process, and tensors on the device, may hold.

        Raises:
            ConfigError: TensorBoard is asked for and not installed; no file has been made.
            ValueError: an argument is none of these.
        """
        if seq_len < 1 or interval < 1:
            raise ValueError(f"seq_len is {seq_len} and interval {interval}: both count from 1")
        for level in (metrics_level, memory_level):
            if level not in LEVELS:
                raise ValueError(f"level is {level!r}, not one of {', '.join(LEVELS)}")
        for limit in (memory_limit_gb, device_memory_limit_gb):
            if limit is not None and not limit > 0:
                raise ValueError(f"a limit is {limit} GiB: it must be above 0, or None")
        self.device, self.seq_len, self.interval = device, seq_len, interval
        self.limits = {
            name: limit
            for name, limit in ((MEMORY_LIMIT, memory_limit_gb), (DEVICE_MEMORY_LIMIT, device_memory_limit_gb))
            if limit is not None
        }
        self._scalars = TensorBoard(folder / "tensorboard") if tensorboard else None
        self._metrics = Journal(folder / "metrics.jsonl", metrics_level)
        self._memory = Journal(folder / "memory.jsonl", memory_level)
        self._troubles: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        """Limits, and how near they were, that have been warned of."""
        self._steps = self._windows = 0
        self._seconds = 0.0
        self._clock = time.perf_counter()
        if device.type == "cuda":
            with self._guarded("the peaks of the device"):
                torch.cuda.reset_peak_memory_stats(device)
        self._peaks: dict[str, float] = {}
        # What the process held before, for other runs or for reading data, is no peak of this run.
        self._baseline_gib = read_memory(device, system=False).process_peak_gib or 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; a later line is lost."""
        with self._guarded("closing the journals"):
            self._metrics.close()
            self._memory.close()
            if self._scalars is not None:
                self._scalars.close()

    def record(
        self,
        stage: str,
        *,
        epoch: int | None,
        step: int | None,
        batch_shape: Sequence[int] | None = None,
        level: Level = "info",
        memory: bool = False,
        **values: Any,
    ) -> None:
        """Write one line of metrics, and with `memory` one of memory.

        Args:
            stage: what the run is doing: start, train, validation, checkpoint, evaluation, resume, stop, error or end.
            epoch: from 1, or None.
            step: optimizer steps done in the whole run, or None.
            batch_shape: [B, S, F], or None.
            level: of the lines.
            memory: read the memory, too. A `resume` is told in both files in any case: readers need it.
            values: what else the line holds. What JSON cannot hold becomes null.
        """
        with self._guarded(f"a line of stage {stage}"):
            place = (stage, epoch, step, batch_shape)
            self._metrics.write(level, _line(level, place, values))
            if self._scalars is not None and stage == "validation" and step is not None:
                self._scalars.add(stage, step, values)
            if memory or stage == "resume":
                self._write_memory(level, place, self._read())

    def step(
        self,
        epoch: int,
        step: int,
        batch_shape: Sequence[int],
        windows: int,
        values: Callable[[], Mapping[str, Any]],
    ) -> LimitState:
        """Count an optimizer step that has just been taken; every `interval` steps, write lines.

        Args:
            epoch: from 1.
            step: optimizer steps done in the whole run, this one included.
            batch_shape: [B, S, F].
            windows: that the step was computed from.
            values: gives what else the line holds (loss, learning rate, gradient norm). Called only for a line that is
                written: it may wait for the device.

        Returns:
            How near the limits the run is. The first time that a limit is near, and that it is over, it is also logged
            and written to memory.jsonl. What follows from it is up to the caller.
        """
        state = LimitState()
        with self._guarded("a step"):
            place = ("train", epoch, step, batch_shape)
            due = step % self.interval == 0
            level: Level = "info" if due else "debug"
            wanted = self._metrics.wants(level) or (due and self._scalars is not None)
            numbers: Mapping[str, Any] = {}
            if wanted:
                with self._guarded("the values of a step"):
                    numbers = values()
            # The clock is read after `values` has waited for the device: only then has the work been done.
            self._count(windows)
            if wanted:
                numbers = {**numbers, **self._speed()}
                self._metrics.write(level, _line(level, place, numbers))
                if due and self._scalars is not None:
                    self._scalars.add("train", step, numbers)
            remember = due or self._memory.wants(level)
            if remember or self.limits:
                reading = self._read(system=remember)
                if remember:
                    self._write_memory(level, place, reading)
                state = self._judge(reading)
                self._warn(state, place)
        return state

    def limit_state(self) -> LimitState:
        """How near its limits the run is now; writes nothing. Costs nothing where no limit is set."""
        state = LimitState()
        if self.limits:
            with self._guarded("the limits"):
                state = self._judge(self._read(system=False))
        return state

    def resume_clock(self) -> None:
        """Leave out of the speed the time since the last step, or since the last call."""
        self._clock = time.perf_counter()

    def reading(self) -> dict[str, Any]:
        """The memory now, with the fields of a line of memory.jsonl; {} where it cannot be read."""
        fields: dict[str, Any] = {}
        with self._guarded("reading the memory"):
            fields = self._read().to_dict()
        return fields

    def peaks(self) -> dict[str, float | None]:
        """The highest memory of the run so far and its limits, in GiB; None: no GPU, or no limit."""
        with self._guarded("the peaks"):
            self._read(system=False)
        return {
            "peak_process_gib": self._peaks.get("process_peak_gib"),
            "peak_device_gib": self._peaks.get("device_peak_allocated_gib"),
            "limit_gib": self.limits.get(MEMORY_LIMIT),
            "device_limit_gib": self.limits.get(DEVICE_MEMORY_LIMIT),
        }

    def _judge(self, reading: MemoryReading) -> LimitState:
        return check_limits(reading, self.limits.get(MEMORY_LIMIT), self.limits.get(DEVICE_MEMORY_LIMIT))

    def _count(self, windows: int) -> None:
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        self._steps += 1
        self._windows += windows

    def _speed(self) -> dict[str, float | None]:
        """Speed since the last call."""
        rate = self._windows / self._seconds if self._seconds > 0 else None
        speed = {
            "windows_per_second": rate,
            "samples_per_second": None if rate is None else rate * self.seq_len,
            "seconds_per_step": self._seconds / self._steps,
        }
        self._steps = self._windows = 0
        self._seconds = 0.0
        return speed

    def _read(self, system: bool = True) -> MemoryReading:
        """The memory now; its peaks are those of this run, and never fall."""
        reading = read_memory(self.device, baseline_gib=self._baseline_gib, system=system)
        for name in ("process_peak_gib", "device_peak_allocated_gib"):
            value = getattr(reading, name)
            if value is not None:
                self._peaks[name] = max(value, self._peaks.get(name, 0.0))
        return replace(
            reading,
            process_peak_gib=self._peaks.get("process_peak_gib"),
            device_peak_allocated_gib=self._peaks.get("device_peak_allocated_gib"),
        )

    def _write_memory(self, level: Level, place: Place, reading: MemoryReading, **values: Any) -> None:
        numbers = reading.to_dict()
        self._memory.write(level, _line(level, place, {**numbers, **values}))
        stage, _, step, _ = place
        if self._scalars is not None and step is not None and stage in ("train", "validation") and level != "debug":
            self._scalars.add("memory", step, numbers)

    def _warn(self, state: LimitState, place: Place) -> None:
        """Tell of limits that are near or over and were not before, and of those that cannot be watched here."""
        reached = {(setting, level) for setting, level in state.levels.items() if level != "ok"}
        if reached - self._told:
            self._told |= reached
            logger.warning("memory: %s", state.message)
            self._write_memory("warning", place, self._read(), limit=state.level, warning=state.message)
        unknown = {(setting, "unknown") for setting in self.limits if setting not in state.levels}
        for setting, _ in unknown - self._told:
            logger.warning("%s cannot be watched: there is no such reading on %s", setting, self.device)
        self._told |= unknown

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Let no error out of here: it is said once for every `what`."""
        try:
            yield
        except Exception as error:
            if what not in self._troubles:
                self._troubles.add(what)
                logger.warning("monitoring: %s failed: %s: %s", what, type(error).__name__, error, exc_info=True)


def _line(level: str, place: Place, values: Mapping[str, Any]) -> dict[str, Any]:
    stage, epoch, step, batch_shape = place
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level.upper(),
        "stage": stage,
        "epoch": epoch,
        "step": step,
        "batch_shape": batch_shape if batch_shape is None else list(batch_shape),
        **values,
    }
