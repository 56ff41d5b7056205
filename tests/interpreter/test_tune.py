"""Tests of the tool that measures kernels, with interpreted ones, and of dispatch by the file that it writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gpu import tune
from pgat_kernels import dispatch
from pgat_kernels.instrumentation import record_configurations
from pgat_kernels.launch_configs import configuration
from pgat_kernels.tuning_table import Case, Configuration, Entry, Threshold, read
from tests.interpreter.small_cases import SMALL_CASES

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the tool to two operators and few configurations, with a clock by which kernels are faster."""
    chosen = [case._replace(dtypes=("fp32",)) for case in SMALL_CASES if case.operator in ("edge_head", "gru_bank")]
    monkeypatch.setattr(tune, "CASES", tuple(chosen))
    monkeypatch.setattr(tune, "VALUES", {"block": (16, 32), "warps": (4,), "columns": (), "stages": (1,)})
    monkeypatch.setattr(tune, "LADDER", (2, 1))

    by_kernels = [False]
    original = tune.results

    def results(operator: tune.Operator, leaves: list[Tensor], kernels: bool, *g: Tensor) -> list[Tensor]:
        by_kernels[0] = kernels
        return original(operator, leaves, kernels, *g)

    def milliseconds(run: Callable[[], object], device: torch.device) -> float:
        run()
        return 1.0 if by_kernels[0] else 2.0

    monkeypatch.setattr(tune, "results", results)
    monkeypatch.setattr(tune, "milliseconds", milliseconds)


def test_dispatch_follows_the_written_file(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tuning_table.json"
    other = Entry("another", {Case("gru forward", 4, 128): Configuration(32, 2, 1)}, {})
    file.write_text('{"sm_75": ' + str(tune.as_json(other)).replace("'", '"') + "}")
    messages: list[str] = []
    tune.tune(CPU, file, timesteps=1, limit=1e9, compiling=False, say=messages.append)
    measurements = read(file)
    assert measurements["sm_75"] == other, "others stay"
    entry = measurements["default"]
    cases = {f"{kernel} {direction}" for kernel in ("edge_head", "gru") for direction in ("forward", "backward")}
    assert {case.kernel for case in entry.configurations} == cases
    assert set(entry.thresholds) == {Case("edge_head", 4, 256), Case("gru_bank", 4, 32)}
    assert len(messages) >= len(entry.configurations) + len(entry.thresholds)

    monkeypatch.setattr("pgat_kernels.launch_configs.listed", read(file).get)
    case, chosen = next(iter(entry.configurations.items()))
    assert configuration(*case, "default") == chosen
    monkeypatch.setattr(dispatch, "applying", read(file).get)
    assert entry.thresholds[Case("edge_head", 4, 256)] == Threshold(10, "measured"), (
        "they are faster by that clock, at all sizes"
    )
    for rows in (9, 10):
        assert dispatch.wanted(dispatch.Kernels.LISTED, "edge_head", torch.ones(rows, 208), 208) is (rows == 10)


def test_without_time_nothing_is_measured_and_every_case_is_reported(small: None, tmp_path: Path) -> None:
    messages: list[str] = []
    tune.tune(CPU, tmp_path / "tuning_table.json", timesteps=2, limit=-1, compiling=False, say=messages.append)
    assert not (tmp_path / "tuning_table.json").exists()
    assert len(messages) == 4 + 2
    assert all("no time is left" in line for line in messages)


def test_later_measurements_use_the_chosen_configurations(small: None, tmp_path: Path) -> None:
    """By the clock of this test tiles of 32 rows are faster, so the comparison with plain torch has to use them."""
    blocks = []

    def milliseconds(run: Callable[[], object], device: torch.device) -> float:
        with record_configurations() as cases:
            run()
        blocks.extend(configuration(*case).block for case in cases if case.kernel == "edge_head forward")
        return 1.0

    def seconds_by_events(run: Callable[[], object], device: torch.device) -> float:
        run()
        (launch,) = run.args
        return 1.0 / launch.configuration.block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "milliseconds", milliseconds)
        patch.setattr(tune, "seconds_by_events", seconds_by_events)
        tune.tune(CPU, tmp_path / "tuning_table.json", timesteps=1, limit=1e9, compiling=False, say=lambda line: None)
    assert read(tmp_path / "tuning_table.json")["default"].configurations[Case("edge_head forward", 4, 256)].block == 32
    assert blocks[-1] == 32


def test_configuration_with_different_results_is_rejected(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tune.seconds_of_launches
    rejected = Configuration(32, 8, 1, columns=16)

    def seconds_of_launches(
        case: Case, chosen: Configuration, *args: Any
    ) -> tuple[dict[str, float], list[list[Tensor]]]:
        seconds, result = original(case, chosen, *args)
        if chosen == rejected:
            return {"edge_head_fwd": 0.0}, [[x + 1e-3 for x in result[0]]]
        return seconds, result

    monkeypatch.setattr(tune, "seconds_of_launches", seconds_of_launches)
    (operator,) = (case for case in tune.CASES if case.operator == "edge_head")
    case, start, messages = Case("edge_head forward", 4, 256), Configuration(16, 8, 1, columns=16), list[str]()
    result = tune.tuned(case, start, [(operator, torch.float32)], CPU, 1, messages.append)
    assert result is not None
    assert result.block == 16
    assert "its results differ" in messages[0]


def test_each_launch_of_a_case_is_timed_alone(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []

    def seconds_by_events(run: Callable[[], object], device: torch.device) -> float:
        run()
        timed.append(run.args[0].kernel.__name__)
        return 1.0

    monkeypatch.setattr(tune, "seconds_by_events", seconds_by_events)
    (operator,) = (case for case in tune.CASES if case.operator == "edge_head")
    case, users = Case("edge_head backward", 4, 256), [(operator, torch.float32)]
    start = configuration(*case)
    seconds, (tensors,) = tune.seconds_of_launches(case, start, users, CPU, 1)
    assert timed == ["_edge_head_bwd_kernel"]
    assert list(seconds.values()) == [1.0]
    expected = tune.results(operator, operator.leaves(torch.float32, CPU, 1), True)
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_kernels_come_in_the_order_of_their_time_in_a_production_step(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that is launched more often comes first; one that fails comes before all others."""
    monkeypatch.setattr(tune, "seconds_by_events", lambda run, device: float(run() is None))
    monkeypatch.setattr(tune, "launches_of_a_step", lambda: {"edge_head_bwd, 8 hidden": 7})
    cases = tune.uses(CPU)
    order = tune.by_production_time(cases, Entry("", {}, {}), "default", CPU, 1)
    assert order[0].kernel == "edge_head backward"
    assert sorted(order) == sorted(cases)
    original = tune.seconds_of_launches

    def seconds_of_launches(case: Case, *args: Any) -> Any:
        if case.kernel == "gru forward":
            raise RuntimeError("out of resource")
        return original(case, *args)

    monkeypatch.setattr(tune, "seconds_of_launches", seconds_of_launches)
    assert tune.by_production_time(cases, Entry("", {}, {}), "default", CPU, 1)[0].kernel == "gru forward"
