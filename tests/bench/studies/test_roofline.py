"""Tests of `bench.studies.roofline`: the roofs, and the FLOPs, bytes and seconds of the points."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.kernel_cases import CASES
from bench.studies import roofline
from pgat_fast.cli import main


def test_fraction_is_of_lower_roof() -> None:
    point = {"flops": 100, "bytes": 10, "seconds": 2.0}
    assert roofline.fraction_of_roof(point, 100.0, 1e9) == 0.5, "products take a second of two"
    assert roofline.fraction_of_roof(point, 1e9, 20.0) == 0.25, "bytes take half a second of two"


@pytest.mark.slow  # takes real measurements
def test_roofs_and_points_are_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = tuple(case for case in CASES if case.operator in ("aspects", "edge_head"))
    monkeypatch.setattr(roofline, "CASES", chosen)
    monkeypatch.setattr(roofline, "TIMESTEPS", {"small": 2})
    monkeypatch.setattr(roofline, "COMBINER_TIMESTEPS", {"cpu": 1})
    monkeypatch.setattr(roofline, "ELEMENTS", {"cpu": 2**16})
    path = tmp_path / "roofline.json"
    assert main(["bench", "roofline", "--device", "cpu", "--backends", "torch:eager", "--json", str(path)]) == 0
    record: dict[str, Any] = json.loads(path.read_text())
    points = record["points"]
    assert [point["what"] for point in points] == [*(case.operator for case in chosen), "combiner", "combiner"]
    for point in points:
        assert point["seconds"] > 0
        assert point["flops"] > 0
        assert point["bytes"] > 0
        assert point["fraction_of_roof"] > 0
    aspects = next(point for point in points if point["what"] == "aspects")
    assert aspects["bytes"] == 2 * 4 * (2 * 208 + 78 * 208 + 208 + 1 + 2 * 169), "inputs, result and gradients, once"
    assert record["bandwidth"]["bytes_per_second"] > 0
    assert "GB/s of memory, products at" in capsys.readouterr().out


def test_bandwidth_counts_every_accessed_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "ELEMENTS", {"cpu": 250})
    monkeypatch.setattr(roofline, "shortest", lambda run, seconds, device: 0.001)
    rates = roofline.bandwidth(torch.device("cpu"))
    assert (rates["copy"], rates["add"]) == (2e6, 3e6)
