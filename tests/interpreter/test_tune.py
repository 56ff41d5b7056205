"""Tests of the tool that measures kernels, with interpreted ones, and of dispatch by the file that it writes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.gpu import tune
from pgat_kernels import dispatch
from pgat_kernels.instrumentation import record_configurations
from pgat_kernels.launch_configs import configuration
from pgat_kernels.tuning_table import Case, Configuration, Measured, read
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
    other = Measured("another", {Case("gru forward", 4, 128): Configuration(32, 2, 1)}, {})
    file.write_text('{"sm_75": ' + str(tune.as_json(other)).replace("'", '"') + "}")
    messages: list[str] = []
    tune.tune(CPU, file, timesteps=1, limit=1e9, compiling=False, say=messages.append)
    measurements = read(file)
    assert measurements["sm_75"] == other, "others stay"
    entry = measurements["default"]
    cases = {f"{kernel} {direction}" for kernel in ("edge_head", "gru") for direction in ("forward", "backward")}
    assert {case.kernel for case in entry.configurations} == cases
    assert set(entry.from_rows) == {Case("edge_head", 4, 256), Case("gru_bank", 4, 32)}
    assert len(messages) >= len(entry.configurations) + len(entry.from_rows)

    monkeypatch.setattr("pgat_kernels.launch_configs.measured", read(file).get)
    case, chosen = next(iter(entry.configurations.items()))
    assert configuration(*case, "default") == chosen
    monkeypatch.setattr(dispatch, "measured", read(file).get)
    assert entry.from_rows[Case("edge_head", 4, 256)] == 10, "they are faster by that clock, at all sizes"
    for rows in (9, 10):
        assert dispatch.wanted(dispatch.Kernels.MEASURED, "edge_head", torch.ones(rows, 208), 208) is (rows == 10)


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
        chosen = [configuration(*case) for case in cases if case.kernel == "edge_head forward"]
        blocks.extend(choice.block for choice in chosen)
        return 1.0 / chosen[0].block if chosen else 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "milliseconds", milliseconds)
        tune.tune(CPU, tmp_path / "tuning_table.json", timesteps=1, limit=1e9, compiling=False, say=lambda line: None)
    assert read(tmp_path / "tuning_table.json")["default"].configurations[Case("edge_head forward", 4, 256)].block == 32
    assert blocks[-1] == 32


def test_configuration_with_different_results_is_rejected(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = tune.seconds_of
    rejected = Configuration(32, 8, 1, columns=16)

    def seconds_of(*args: object) -> tuple[float, int, list[list[Tensor]]]:
        seconds, result = original(*args)
        if configuration("edge_head forward", 4, 208) == rejected:
            return 0.0, [[x + 1e-3 for x in result[0]]]
        return seconds, result

    monkeypatch.setattr(tune, "seconds_of", seconds_of)
    (operator,) = (case for case in tune.CASES if case.operator == "edge_head")
    case, start, messages = Case("edge_head forward", 4, 256), Configuration(16, 8, 1, columns=16), list[str]()
    result = tune.tuned(case, start, [(operator, torch.float32)], CPU, 1, messages.append)
    assert result is not None
    assert result.block == 16
    assert "its results differ" in messages[0]
