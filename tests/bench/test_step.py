"""Tests of `bench.step`: each backend is measured in processes of its own, and the figures are written."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.step import Compiler, compare, main, summarize
from tests.bench.in_process import call_as_command, run_tasks_in_process
from tests.conftest import TINY

SMALL = (*TINY, "model.use_celestial_graph=false")
"""Overrides for a small model without the graph of bodies, whose 13 processors are 20,000 operators to count."""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    command = ["--config", "configs/production_batched.yaml", *arguments, "--set", *SMALL]
    return call_as_command(monkeypatch, main, "bench.step", command)


@pytest.mark.multiprocess
def test_backends_take_turns_and_failed_compilation_does_not_stop_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Time the steps in separate processes, whose memory is measured; counting needs none of its own."""

    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nhere")

    def is_timed_eagerly(task: dict[str, Any]) -> bool:
        return task["kind"] == "time" and not task["spec"]["compiled"]

    monkeypatch.setattr("bench.step.compile_module", fail)
    run_tasks_in_process(monkeypatch, "bench.step", in_own_process=is_timed_eagerly)
    out = tmp_path / "step.json"
    backends = "reference,torch:highest:eager,reference:compiled"
    arguments = ["--batch", "2", "--steps", "2", "--rounds", "1", "--peak-seconds", "0.01", "--json", str(out)]
    assert run(monkeypatch, "--backends", backends, *arguments) == 1, "one backend failed"
    record = json.loads(out.read_text())
    assert (record["batch"], record["steps"], record["rounds"]) == (2, 2, 1)
    assert record["command"].startswith("python -m bench.step --config")
    assert record["machine"]["cores"] >= 1
    assert datetime.fromisoformat(record["machine"]["date"]).tzinfo is UTC
    assert {"commit", "changed", "c_library"} <= record["machine"].keys()
    assert isinstance(record["machine"]["environment"], dict)
    assert record["order"] == backends.split(",")
    assert set(record["matrix_peak"]) == {"highest"}
    first, second, compiled = record["results"]
    for measured in (first, second):
        assert 0 < measured["step_seconds"]["quartile_1"] <= measured["step_seconds"]["quartile_3"] < 60
        assert len(measured["round_medians"]) == 1
        assert 0 < measured["steps_peak_memory_gib"] <= measured["peak_memory_gib"] < 4
        assert 0 < measured["fraction_of_matrix_peak"] < 1
        assert measured["compiled"] is False
        assert 0 < 2 * measured["forward_flops"] < measured["flops"]
    assert (first["backend"], first["precision"]) == ("reference", "highest")
    assert (second["backend"], second["precision"]) == ("torch:highest:eager", "highest")
    assert second["saved_for_backward_bytes"] < first["saved_for_backward_bytes"]
    ratio = first["step_seconds"]["median"] / second["step_seconds"]["median"]
    assert second["times_less_than_first"]["step_seconds"] == pytest.approx(ratio)
    assert "times_less_than_first" not in first
    assert compiled.keys() == {"backend", "error", "times_less_than_first"}
    assert compiled["error"] == "RuntimeError: no compiler"
    printed = capsys.readouterr().out
    head, *rows = printed.splitlines()
    assert head.split()[:4] == ["backend", "seconds", "a", "step"]
    assert [row.split()[0] for row in rows] == backends.split(",")
    assert compiled["error"] in rows[2]


@pytest.mark.slow  # every operator is counted in Python
def test_zero_steps_only_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_tasks_in_process(monkeypatch, "bench.step")
    out = tmp_path / "step.json"
    arguments = ["--batch", "3", "--steps", "0", "--json", str(out)]
    assert run(monkeypatch, "--backends", "reference,torch:eager", *arguments) == 0
    record = json.loads(out.read_text())
    reference, fast = record["results"]
    assert reference["saved_for_backward_bytes"] > fast["saved_for_backward_bytes"] > 0
    assert reference["parameters"] == fast["parameters"]
    assert "step_seconds" not in fast
    assert record["order"] == []


def test_unavailable_backend_ends_command_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = "configs/production_batched.yaml"
    monkeypatch.setattr(sys, "argv", ["bench.step", "--config", config, "--backends", "reference,triton"])
    with pytest.raises(SystemExit, match="2"):
        main()
    output = capsys.readouterr()
    assert "backend 'triton' cannot run here" in output.err
    assert output.out == ""


def test_graphs_and_graph_breaks_are_counted() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        return y + 1

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    before = Compiler.now()
    torch.compile(broken, backend="eager")(torch.ones(3))
    record = Compiler.now().record(before)
    assert record["graphs"] == record["graphs_made_while_timed"] == 2
    assert record["graph_breaks"] == sum(record["graph_break_reasons"].values()) == 1
    assert all("\n" not in reason for reason in record["graph_break_reasons"])


def test_compile_time_is_warm_up_beyond_its_steps() -> None:
    compiler = {"graphs": 1, "graphs_made_while_timed": 0, "graph_breaks": 0, "graph_break_reasons": {}}
    memory: dict[str, Any] = {"peak_memory_gib": 1.0, "steps_peak_memory_gib": 0.5, "baseline_memory_gib": 0.2}
    memory |= {"reserved_memory_gib": None, "device": "cpu"}
    rounds = [
        {"precision": "highest", "compiled": True, "warm_up_seconds": [cost, 2.0], "seconds": [2.0, 2.0]}
        | {"compiler": compiler}
        | memory
        for cost in (102.0, 12.0)
    ]
    result = summarize("torch", {"flops": 8, "saved_for_backward_bytes": 4}, rounds, batch=4)
    assert result["round_medians"] == [2.0, 2.0]
    assert (result["compile"]["seconds"], result["compile"]["seconds_with_cache"]) == (100.0, 10.0)
    assert result["windows_per_second"] == 2.0
    assert result["flop_per_second"] == 4.0
    assert summarize("torch", {"error": "no"}, rounds, batch=4)["count_error"] == "no"
    assert summarize("torch", {"flops": 8}, [*rounds, {"error": "dead"}], batch=4) == {
        "backend": "torch", "error": "dead",
    }  # fmt: skip
    assert compare(result, {"error": "no"}) == {}
    assert compare(result, {"saved_for_backward_bytes": 12, "flops": 16}) == {
        "saved_for_backward_bytes": 3.0, "flops": 2.0,
    }  # fmt: skip
