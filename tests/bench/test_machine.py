"""Tests of `bench.machine`: the description distinguishes machines, and contains nothing private."""

import socket
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import machine


def test_description_names_processor_and_versions_but_not_host() -> None:
    description = machine.describe()
    assert description["processor"] != "unknown"
    assert {"torch", "triton", "python", "driver", "cuda", "gpu_power_limit_watts", "commit"} <= description.keys()
    assert socket.gethostname() not in str(description)


@pytest.mark.parametrize(
    ("output", "limit", "driver"),
    [("700.00, 570.10\n", 700.0, "570.10"), ("[N/A], 570.10\n", None, "570.10"), (None, None, None)],
)
def test_gpu_has_power_limit_and_driver(
    output: str | None, limit: float | None, driver: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> Any:
        assert command[1] == "--id=GPU-1234"
        if output is None:
            raise FileNotFoundError(command[0])
        return SimpleNamespace(stdout=output)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(subprocess, "run", run)
    description = machine._gpu()
    assert (description["gpu"], description["gpu_power_limit_watts"], description["driver"]) == (
        "Some GPU",
        limit,
        driver,
    )
