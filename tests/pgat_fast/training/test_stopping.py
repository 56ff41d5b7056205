"""Decisions that all ranks take together: stops, memory limits, and what is due before a step."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from pgat_fast import load_config
from pgat_fast.config.schema import TrainingConfig
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.errors import ConfigError, MemoryLimitError, RankError, StopRequested
from pgat_fast.monitoring.memory import LimitState
from pgat_fast.monitoring.monitor import Monitor
from pgat_fast.training import run
from pgat_fast.training.run_folder import read_status
from pgat_fast.training.signals import Stop
from pgat_fast.training.state import Progress
from pgat_fast.training.stopping import Control


class FakeGroup(SingleProcess):
    """The first of `size` ranks; another rank makes the listed `requests`, one per collective."""

    lockstep = True

    def __init__(self, size: int, requests: list[Any] | None = None) -> None:
        self.size, self.requests = size, iter(requests or [])

    def all_gather_requests(self, request: Any) -> list[Any]:
        return [entry for entry in (request, next(self.requests, None)) if entry is not None]

    def poll(self, check: Callable[[], None]) -> None:
        pass


class LimitReached:
    """Stands in for a monitor whose memory limit is exceeded."""

    def limit_state(self) -> LimitState:
        return LimitState({"run.memory_limit_gb": "over"}, "this process is over its limit")


def control_of(group: SingleProcess, *, has_checkpoint: bool = True, **settings: Any) -> Control:
    control = Control(Stop(), group, TrainingConfig.model_validate(settings), cast(Monitor, LimitReached()), 1.0)
    control.has_checkpoint = has_checkpoint
    return control


def test_stop_request_of_another_rank_ends_validation(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = FakeGroup(2, [None, ("stop", "SIGUSR1")])

    @contextmanager
    def fake_process_group(*_: object) -> Iterator[SingleProcess]:
        yield group

    monkeypatch.setattr(run, "process_group", fake_process_group)
    with pytest.raises(StopRequested, match="SIGUSR1"):
        run.train(load_config(None, tiny), progress=False)
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_status(folder)["stage"] == "validation"
    assert next(group.requests, "none left") == "none left"


def test_memory_limit_of_another_rank_stops_this_one() -> None:
    control = control_of(FakeGroup(2, [("memory", "rank 1 is over its limit")]))
    with pytest.raises(MemoryLimitError, match="rank 1 is over its limit"):
        control.agree("save")


def test_first_rank_decides_what_is_due() -> None:
    group = FakeGroup(2)
    control = control_of(group)
    assert control.agree("save") == "save"
    group.rank = 1
    assert control.agree("save") is None
    group.requests = iter([("due", "end")])
    assert control.agree("save") == "end"


def test_checkpoint_is_due_by_minutes_and_end_of_training_by_limits() -> None:
    control = control_of(SingleProcess(), epochs=2, max_steps=5)
    now = time.monotonic()
    assert control.before_step(Progress(step=4), now) is None
    assert control.before_step(Progress(step=4), now - 61) == "save"
    assert control.before_step(Progress(step=5), now - 61) == "end"
    assert control_of(SingleProcess(), max_minutes=1e-9).before_step(Progress(), now) == "end"


def test_memory_limit_stops_evaluation_only_if_run_can_be_resumed() -> None:
    control_of(SingleProcess(), has_checkpoint=False).before_batch()
    with pytest.raises(MemoryLimitError, match="this process is over its limit"):
        control_of(SingleProcess()).before_batch()


def test_rank_waits_for_first_one_only_if_all_fail_alike() -> None:
    class Waiting(FakeGroup):
        waits = 0

        def run_on_main(self, function: Callable[[], Any]) -> Any:
            self.waits += 1
            raise RankError("rank 0 has ended")

    group = Waiting(2)
    control = control_of(group)
    control.wait_for_ranks()
    assert group.waits == 0
    control.on_all_ranks(ConfigError("the same on all ranks"))
    control.wait_for_ranks()
    assert group.waits == 1
