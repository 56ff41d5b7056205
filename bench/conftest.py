"""Options of the benchmarks, and the machine in stored results: as `bench.machine` describes it, no host name."""

from collections.abc import Sequence
from typing import Any, Final

import pytest
import torch

from bench.machine import describe
from bench.suite import TIMESTEPS
from pgat_fast.utils.device import resolve_device

PARAMETERS: Final = {
    "combiner": ("batched,hierarchical", "combiners of the model"),
    "backend": ("reference,torch", "backends of the model, with words as bench.backend_spec takes them"),
    "precision": ("highest", "precisions of the model and its parts"),
    "batch": ("1", "windows of a training step"),
    "seq_len": ("16", "days of history of a window; with --shape production 250"),
}
"""Parameter of a benchmark -> its default values, and what they are."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pgat_fast benchmarks")
    group.addoption("--shape", choices=sorted(TIMESTEPS), default="small", help="sizes (default: %(default)s)")
    group.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    for name, (default, what) in PARAMETERS.items():
        option = f"--{name.replace('_', '-')}"
        group.addoption(option, metavar="VALUE,...", help=f"{what} (default: {default})")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, (default, _) in PARAMETERS.items():
        if name not in metafunc.fixturenames:
            continue
        given = metafunc.config.getoption(name)
        if given is None and name == "seq_len" and metafunc.config.getoption("shape") == "production":
            given = "250"
        values: Sequence[Any] = (given or default).split(",")
        if name in ("batch", "seq_len"):
            values = [int(value) for value in values]
        metafunc.parametrize(name, values, ids=[f"{name}={value}" for value in values])


@pytest.fixture
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("shape"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return resolve_device(str(request.config.getoption("device")))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(describe())


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["command"] = " ".join(["python", "-m", "pytest", *config.invocation_params.args])
    output_json.pop("commit_info")
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
