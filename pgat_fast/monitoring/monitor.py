"""Record speed and losses of a run in metrics.jsonl, and its memory in memory.jsonl."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from pgat_fast.monitoring.jsonl_logger import JsonlLogger, Level
from pgat_fast.monitoring.memory import (
    DEVICE_MEMORY_LIMIT,
    MEMORY_LIMIT,
    LimitState,
    MemoryReading,
    check_limits,
    read_memory,
)
from pgat_fast.monitoring.tensorboard import writer_class

logger = logging.getLogger("pgat_fast.monitoring")


class _Position(NamedTuple):
    """What the run is doing when a line is written."""

    stage: str
    epoch: int | None
    step: int | None
    batch_shape: Sequence[int] | None

    def line(self, level: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a line: the time, `level`, the position and `values`."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return {"time": now, "level": level.upper(), **self._asdict(), **values}


class Monitor:
    """Writer of metrics and memory of one run that checks its memory limits. A context manager that closes the files.

    No method raises: a failure to read or write is logged once on `pgat_fast.monitoring`, and the run continues.
    Between two lines the device is not synchronized.

    `windows_per_second` measures the time from step to step. After anything else that takes time (validation, writing
    a checkpoint) call `resume_clock` before the next step, to leave that time out.
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
        """Open the files in `folder`, which exists.

        Args:
            folder: the folder of the run, for `metrics.jsonl`, `memory.jsonl` and, with `tensorboard`, `tensorboard/`.
            device: where the model computes. The memory peaks that torch keeps for a CUDA device are reset.
            seq_len: days of history in a window; each is one sample.
            interval: optimizer steps between two lines of training.
            metrics_level, memory_level: lowest level that is written: debug (a line for every step, which waits for
                the device), info, warning, off.
            tensorboard: write the numbers for TensorBoard too.
            memory_limit_gb, device_memory_limit_gb: GiB that the process, and tensors on the device, may hold.

        Raises:
            ConfigError: if `tensorboard` is true and TensorBoard is not installed; no file has been created.
        """
        limits = {MEMORY_LIMIT: memory_limit_gb, DEVICE_MEMORY_LIMIT: device_memory_limit_gb}
        self.limits = {name: limit for name, limit in limits.items() if limit is not None}
        self.device, self.seq_len, self.interval = device, seq_len, interval
        self._writer_class = writer_class() if tensorboard else None
        self._writer: Any = None
        self._folder = folder
        self._metrics = JsonlLogger(folder / "metrics.jsonl", metrics_level)
        self._memory = JsonlLogger(folder / "memory.jsonl", memory_level)
        self._failures: set[str] = set()
        self._warned: set[tuple[str, str]] = set()
        """Limits with the level of the last warning."""
        self._steps = self._windows = 0
        self._seconds = 0.0
        self._clock = time.perf_counter()
        if device.type == "cuda":
            with self._log_errors("resetting the peaks of the device"):
                torch.cuda.reset_peak_memory_stats(device)
        self._peaks: dict[str, float] = {}
        # Memory of earlier runs in this process does not count as a peak of this run.
        self._baseline_gib = read_memory(device, system=False).process_peak_gib or 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; later lines are not written."""
        self._metrics.close()
        self._memory.close()
        with self._log_errors("closing the files of TensorBoard"):
            if self._writer is not None:
                self._writer.close()
        self._writer = self._writer_class = None

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
        """Write a line of metrics, and with `memory` a line of memory.

        Args:
            stage: what the run is doing: start, train, validation, checkpoint, evaluation, resume, stop, error or end.
            epoch: from 1, or None.
            step: optimizer steps done in the whole run, or None.
            batch_shape: [B, S, F], or None.
            level: of the lines.
            memory: write a line of memory too; a `resume` is always written to both files, since `read_jsonl` needs it.
            values: other fields of the line. Values without a JSON form become null.
        """
        with self._log_errors(f"writing a line of stage {stage}"):
            position = _Position(stage, epoch, step, batch_shape)
            self._metrics.log(level, position.line(level, values))
            if stage == "validation" and step is not None:
                self._add_scalars(stage, step, values)
            if memory or stage == "resume":
                self._write_memory(level, position, self._read())

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
            windows: number of windows in the step.
            values: returns other fields of the line (loss, learning rate, gradient norm). Called only for a line that
                is written, since it may wait for the device.

        Returns:
            The state of the memory limits. The first time that a limit is near, and the first time that it is over, is
            also logged and written to memory.jsonl.
        """
        state = LimitState()
        with self._log_errors("recording a step"):
            position = _Position("train", epoch, step, batch_shape)
            due = step % self.interval == 0
            level: Level = "info" if due else "debug"
            is_written = self._metrics.is_enabled_for(level) or (due and self._writer_class is not None)
            numbers: Mapping[str, Any] = {}
            if is_written:
                with self._log_errors("computing the values of a step"):
                    numbers = values()
            # Read the clock after `values` has waited for the device: only then is the step complete.
            now = time.perf_counter()
            self._seconds += now - self._clock
            self._clock = now
            self._steps += 1
            self._windows += windows
            if is_written:
                numbers = {**numbers, **self._speed()}
                self._metrics.log(level, position.line(level, numbers))
                if due:
                    self._add_scalars("train", step, numbers)
            memory_is_written = due or self._memory.is_enabled_for(level)
            if memory_is_written or self.limits:
                reading = self._read(system=memory_is_written)
                if memory_is_written:
                    self._write_memory(level, position, reading)
                state = check_limits(reading, self.limits)
                self._warn(state, position)
        return state

    def limit_state(self) -> LimitState:
        """Return the state of the memory limits; does not read memory if no limit is set."""
        state = LimitState()
        if self.limits:
            with self._log_errors("checking the limits"):
                state = check_limits(self._read(system=False), self.limits)
        return state

    def resume_clock(self) -> None:
        """Leave the time since the last step or call out of the speed."""
        self._clock = time.perf_counter()

    def reading(self) -> dict[str, Any]:
        """Return the current memory with the fields of a line of memory.jsonl; {} if it cannot be read."""
        fields: dict[str, Any] = {}
        with self._log_errors("reading the memory"):
            fields = self._read().to_dict()
        return fields

    def peaks(self) -> dict[str, float | None]:
        """Return the peak memory of the run and its limits in GiB; None without a GPU or a limit."""
        with self._log_errors("reading the peaks"):
            self._read(system=False)
        return {
            "peak_process_gib": self._peaks.get("process_peak_gib"),
            "peak_device_gib": self._peaks.get("device_peak_allocated_gib"),
            "limit_gib": self.limits.get(MEMORY_LIMIT),
            "device_limit_gib": self.limits.get(DEVICE_MEMORY_LIMIT),
        }

    def _speed(self) -> dict[str, float | None]:
        """Return the speed since the last call."""
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
        """Return the current memory, with the peaks of this run."""
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

    def _write_memory(self, level: Level, position: _Position, reading: MemoryReading, **values: Any) -> None:
        numbers = reading.to_dict()
        self._memory.log(level, position.line(level, {**numbers, **values}))
        if position.step is not None and position.stage in ("train", "validation") and level != "debug":
            self._add_scalars("memory", position.step, numbers)

    def _add_scalars(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the finite numbers of `values` for TensorBoard, as `group/name`."""
        if self._writer_class is None:
            return
        with self._log_errors("writing for TensorBoard"):
            if self._writer is None:  # `purge_step` hides what an earlier process of the run wrote for repeated steps
                self._writer = self._writer_class(str(self._folder / "tensorboard"), purge_step=step)
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                    self._writer.add_scalar(f"{group}/{name}", value, step)

    def _warn(self, state: LimitState, position: _Position) -> None:
        """Log limits that have become near or over, and those that cannot be checked on this device."""
        reached = {(setting, level) for setting, level in state.levels.items() if level != "ok"}
        if reached - self._warned:
            logger.warning("memory: %s", state.message)
            self._write_memory("warning", position, self._read(), limit=state.level, warning=state.message)
        unknown = {(setting, "unknown") for setting in self.limits if setting not in state.levels}
        for setting, _ in unknown - self._warned:
            logger.warning("%s cannot be checked on %s", setting, self.device)
        self._warned |= reached | unknown

    @contextmanager
    def _log_errors(self, what: str) -> Iterator[None]:
        """Log an error instead of raising it, once for every `what`."""
        try:
            yield
        except Exception as error:
            if what not in self._failures:
                self._failures.add(what)
                logger.warning("monitoring: %s failed: %s: %s", what, type(error).__name__, error, exc_info=True)
