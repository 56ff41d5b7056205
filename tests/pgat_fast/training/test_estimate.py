"""Estimated durations of a run and its compilation for `run.compile=auto`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import build_model, load_config
from pgat_fast.data.windows import example
from pgat_fast.model.compilation import COMPILE_SECONDS
from pgat_fast.model.compile_cache import TIMES, CompileCache
from pgat_fast.model.execution import Execution
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.training import estimate
from pgat_fast.training.estimate import (
    STEP_PER_FORWARD,
    WARM_CACHE,
    expected_compile_seconds,
    measure_batch_seconds,
    program_key,
)
from tests.pgat_fast.model.variants import config_of

CPU = torch.device("cpu")


class Slow(nn.Module):
    """A model with dropout whose forward passes take the listed seconds on a simulated clock."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self.seconds, self.now = iter(seconds), 0.0
        self.execution = Execution(keep=1)

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.now += next(self.seconds)
        return torch.dropout(x, 0.5, True)


@pytest.mark.parametrize(
    ("seconds", "taken"), [([9.0, 3.0], 3.0), ([5.0, 0.4, 0.5], 0.4), ([0.5, 1.5], 0.5), ([0.1, 0.2, 0.3], 0.1)]
)
def test_shortest_of_two_long_or_three_short_forward_passes_counts(
    seconds: list[float], taken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Slow(seconds)
    monkeypatch.setattr("time.perf_counter", lambda: model.now)
    measured = measure_batch_seconds(cast(FastPGAT, model), [torch.ones(3)], "highest", CPU)
    assert measured == pytest.approx(taken * STEP_PER_FORWARD["kept"])
    assert not list(model.seconds)


def test_measuring_does_not_change_generators() -> None:
    rng_state = torch.get_rng_state()
    measure_batch_seconds(cast(FastPGAT, Slow([0.1] * 3)), [torch.ones(100)], "highest", CPU)
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_step_with_recomputation_is_estimated_to_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("batched")
    model = build_model(config, "torch")
    assert isinstance(model, FastPGAT)
    clock = iter(range(1000))
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(clock)))
    window = example(config.model, 1)[:4]
    seconds = []
    for keep in (0, 10**9):
        model.set_execution(replace(model.execution, keep=keep))
        seconds.append(measure_batch_seconds(model, window, "highest", CPU))
    assert seconds == [STEP_PER_FORWARD["recomputed"], STEP_PER_FORWARD["kept"]]


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path, exclusive=True)


def test_compile_time_is_expected_from_earlier_compilations(cache: CompileCache) -> None:
    first_program, second_program, unknown_program = (f"cpu-operators-{name}" for name in ("1", "2", "3"))
    assert expected_compile_seconds(None, first_program, CPU) == COMPILE_SECONDS["cpu"]
    assert expected_compile_seconds(cache, first_program, CPU) == COMPILE_SECONDS["cpu"]
    cache.note_seconds(first_program, 40.0)
    cache.note_seconds(second_program, 20.0)
    cache.note_seconds("cpu-whole-1", 400.0)
    cache.note_seconds("cuda-whole-1", 90.0)
    assert expected_compile_seconds(cache, unknown_program, CPU) == 40, "like the longest of its kind"
    assert expected_compile_seconds(cache, second_program, CPU) == WARM_CACHE * 20, (
        "its code is there, but was never loaded"
    )
    cache.note_seconds(second_program, 3.0)
    assert expected_compile_seconds(cache, second_program, CPU) == 3
    assert expected_compile_seconds(cache, unknown_program, CPU) == 40
    assert expected_compile_seconds(cache, "cpu-whole-2", CPU) == 400


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 3}', '{"a": ["x", 1]}', '{"a": [1, 2, 3]}'])
def test_damaged_list_of_times_is_ignored(text: str, cache: CompileCache) -> None:
    (cache.folder / TIMES).write_text(text)
    assert expected_compile_seconds(cache, "a", CPU) == COMPILE_SECONDS["cpu"]
    cache.note_seconds("a", 8.0)
    assert json.loads((cache.folder / TIMES).read_text()) == {"a": [8.0, 8.0]}


def test_removing_damaged_code_removes_all_times(cache: CompileCache) -> None:
    file = cache.folder / "ab" / "code.so"
    file.parent.mkdir()
    file.write_bytes(b"whole")
    cache.record()
    cache.note_seconds("a", 8.0)
    assert CompileCache(cache.folder, exclusive=True).remove_damaged() == []
    assert cache.seconds() == {"a": (8.0, 8.0)}
    file.write_bytes(b"")
    assert CompileCache(cache.folder, exclusive=True).remove_damaged() == [file]
    assert cache.seconds() == {}


def test_program_key_depends_on_all_that_compiled_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(*settings: str) -> str:
        return program_key(load_config(None, settings), CPU)

    default_key = key()
    assert default_key == key("run.compile=on") == key("training.epochs=3") == key("run.recompute=off")
    changed_keys = [
        key(setting)
        for setting in ("model.seq_len=200", "training.batch_size=3", "run.precision=bf16", "run.compile=whole")
    ]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 17)
    assert len({default_key, *changed_keys, key()}) == 6


def test_steps_take_turns_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = [0.0]

    def step(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    steps = {"a": lambda: step("a", 1.0), "b": lambda: step("b", 2.0)}
    assert estimate.seconds_in_turns(steps, 1.0, CPU) == {"a": [1.0] * 3, "b": [2.0] * 3}
    assert "".join(order) == "abbaab"
    assert len(estimate.seconds_in_turns(steps, 13.0, CPU)["a"]) == 5
    assert estimate.seconds_in_turns({}, 9.0, CPU) == {}
