"""The tool that measures kernels, on interpreted ones: every step of it, and a file that dispatch goes by."""

from pathlib import Path

import pytest
import torch

from bench import tune
from bench.kernel_cases import CASES
from pgat_kernels import dispatch
from pgat_kernels.configurations import configuration
from pgat_kernels.measured import Case, Configuration, Measured, read

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two operators, one configuration to try, and a clock of which kernels are the faster."""
    chosen = [case._replace(dtypes=("fp32",)) for case in CASES if case.operator in ("edge_head", "gru_bank")]
    monkeypatch.setattr(tune, "CASES", tuple(chosen))
    monkeypatch.setattr(tune, "VALUES", {"block": (16, 32), "warps": (4,), "columns": (), "stages": (1,)})
    monkeypatch.setattr(tune, "LADDER", (2, 1))

    def milliseconds(run: object, device: torch.device) -> float:
        return next(ticks)

    ticks = iter([2.0, 1.0] * 100)
    monkeypatch.setattr(tune, "milliseconds", milliseconds)


def test_it_writes_what_dispatch_goes_by(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "measured.json"
    other = Measured("another", {Case("gru forward", 4, 128): Configuration(32, 2, 1)}, {})
    file.write_text('{"sm_75": ' + str(tune.as_json(other)).replace("'", '"') + "}")
    said: list[str] = []
    tune.tune(CPU, file, timesteps=1, limit=1e9, compiling=False, say=said.append)
    found = read(file)
    assert found["sm_75"] == other, "others stay"
    own = found["default"]
    cases = {f"{kernel} {direction}" for kernel in ("edge_head", "gru") for direction in ("forward", "backward")}
    assert {case.kernel for case in own.configurations} == cases
    assert set(own.from_rows) == {Case("edge_head", 4, 256), Case("gru_bank", 4, 32)}
    assert len(said) >= len(own.configurations) + len(own.from_rows)

    monkeypatch.setattr("pgat_kernels.configurations.measured", read(file).get)
    case, chosen = next(iter(own.configurations.items()))
    assert configuration(*case, "default") == chosen
    monkeypatch.setattr(dispatch, "measured", read(file).get)
    least = own.from_rows[Case("edge_head", 4, 256)]
    wanted = dispatch.wanted(dispatch.Kernels.MEASURED, "edge_head", torch.ones(least or 7, 208), 208)
    assert wanted is (least is not None)


def test_without_time_nothing_is_measured_and_all_is_named(small: None, tmp_path: Path) -> None:
    said: list[str] = []
    tune.tune(CPU, tmp_path / "measured.json", timesteps=2, limit=-1, compiling=False, say=said.append)
    assert not (tmp_path / "measured.json").exists()
    assert len(said) == 4 + 3
    assert all("no time is left" in line for line in said)


def test_what_computes_something_else_is_not_taken(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (operator,) = (case for case in tune.CASES if case.operator == "edge_head")
    users = [(operator, torch.float32)]
    right = [tune.results(operator, operator.leaves(torch.float32, CPU, 1), True)]
    tune.seconds_of(users, CPU, 1, right)
    with pytest.raises(tune.UnfitError, match="differ"):
        tune.seconds_of(users, CPU, 1, [[x + 1e-3 for x in right[0]]])
