"""What a stored benchmark result says of the machine: what `bench.machine` knows, and no host name."""

from typing import Any

import pytest

from bench.machine import describe


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(describe())


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]) -> None:
    output_json["command"] = " ".join(["python", "-m", "pytest", *config.invocation_params.args])
    output_json.pop("commit_info")
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
