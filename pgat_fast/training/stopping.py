"""When a run stops, saves a checkpoint and ends training: decisions that all ranks take at the same step."""

import time
from contextlib import suppress
from typing import Literal, TypeVar, cast

from pgat_fast.config.schema import TrainingConfig
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.errors import MemoryLimitError, PgatError, RankError, StopRequested
from pgat_fast.monitoring.memory import LimitState
from pgat_fast.monitoring.monitor import Monitor
from pgat_fast.training.signals import PATIENCE, PATIENCE_OF_OTHERS, Stop
from pgat_fast.training.state import Progress, end_of_training

Due = Literal["end", "save"] | None
"""Action due before a step: end training because of a limit, save a checkpoint, or none."""

Error = TypeVar("Error", bound=PgatError)


class Control:
    """Stop requests, memory limits and limits of training, on which the ranks agree by one small all-reduce a step.

    Attributes:
        group: the ranks that take part; a single process after `leave_group`.
        has_checkpoint: whether the run can be resumed. Without a checkpoint, a memory limit does not stop it.
    """

    def __init__(
        self,
        stop: Stop,
        group: SingleProcess,
        settings: TrainingConfig,
        monitor: Monitor,
        checkpoint_minutes: float | None,
    ) -> None:
        self.stop, self.group, self.settings, self.monitor = stop, group, settings, monitor
        self.checkpoint_minutes, self.has_checkpoint = checkpoint_minutes, False
        self._started = time.monotonic()
        self._limit_message: str | None = None
        self._fails_on_all_ranks = False

    def allow_saving(self) -> None:
        """Give the main thread time to save and stop by itself when a signal arrives."""
        self.stop.patience = PATIENCE if self.group.is_main else PATIENCE_OF_OTHERS

    def poll(self) -> None:
        """Raise StopRequested if this process was asked to stop and need not agree with other ranks."""
        self.group.poll(self.stop.check)

    def observe_memory(self, state: LimitState) -> None:
        """Store whether this process exceeds a memory limit; the next agreement stops the run if it does."""
        self._limit_message = state.message if state.over else None

    def before_batch(self) -> None:
        """Raise if the run must stop or exceeds a memory limit. Call it before every evaluated window."""
        self.poll()
        if self.has_checkpoint:
            self.observe_memory(self.monitor.limit_state())
        self.agree()

    def before_step(self, progress: Progress, last_save: float) -> Due:
        """Return what is due before the next step, alike on all ranks. Raise if the run must stop.

        `last_save` is the time of the last checkpoint, from `time.monotonic`.
        """
        return self.agree(self._due(progress, last_save))

    def _due(self, progress: Progress, last_save: float) -> Due:
        now, limit = time.monotonic(), self.settings.max_minutes
        if limit is not None and now - self._started >= 60 * limit:
            return "end"
        if end_of_training(progress, self.settings) is not None:
            return "end"
        minutes = self.checkpoint_minutes
        return "save" if minutes is not None and now - last_save >= 60 * minutes else None

    def agree(self, due: Due = None) -> Due:
        """Return `due` of the first rank. Raise, on all ranks, if any of them was asked to stop or exceeds a limit."""
        requests = {
            "stop": self.stop.requested,
            "memory": self._limit_message,
            "due": due if self.group.is_main else None,
        }
        request = next(((kind, text) for kind, text in requests.items() if text), None)
        agreed: dict[str, str] = dict(reversed(self.group.all_gather_requests(request)))
        if "stop" in agreed:
            self._fails_on_all_ranks = True
            self.stop.request(agreed["stop"])
            raise StopRequested(agreed["stop"])
        if "memory" in agreed:
            raise self.on_all_ranks(MemoryLimitError(agreed["memory"]))
        return cast(Due, agreed.get("due"))

    def on_all_ranks(self, error: Error) -> Error:
        """Return `error`, noting that all ranks raise it at the same point, since its cause is the same on all."""
        self._fails_on_all_ranks = True
        return error

    def wait_for_ranks(self) -> None:
        """Wait until the first rank has saved, if all ranks fail: torchrun ends all of them when one ends."""
        if self._fails_on_all_ranks:
            with suppress(RankError):
                self.group.run_on_main(lambda: None)

    def leave_group(self) -> None:
        """Leave the process group: the first rank evaluates alone, and the others end."""
        self.group.close()
        self.group = SingleProcess()
