"""Tests of `bench.check`: regressions are named, noise does not pass, and exact counts equal the committed ones."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import check
from bench.check import Verdict, judge, measured, saved_bytes, settings_of
from pgat_fast.utils.io import write_json

Record = dict[str, Any]


def result(backend: str, times: float | None = None, *, width: float = 0.02, memory: float = 1.0) -> Record:
    record: Record = {"backend": backend, "peak_memory_gib": memory, "steps_peak_memory_gib": memory}
    if times is not None:
        ratio = {"estimate": times, "low": times / (1 + width), "high": times * (1 + width), "noisy": width > 0.1}
        record["times_faster"] = ratio
    return record


KNOWN = result("torch", 5.0)


def verdict(new: Record) -> Verdict:
    return judge(KNOWN, new, "reference")


def test_equal_or_better_result_is_no_fault() -> None:
    for new in (KNOWN, result("torch", 4.8), result("torch", 9.0, memory=0.1), result("torch", 7.0, width=0.3)):
        assert verdict(new) == Verdict([])


def test_slow_down_of_20_percent_is_fault() -> None:
    assert verdict(result("torch", 5.0 / 1.2, width=0.07)) == Verdict(
        ["torch: 4.17 times faster than reference (3.89 to 4.46), it was 5"]
    )


def test_more_memory_is_fault() -> None:
    assert verdict(result("torch", 5.0, memory=1.2)) == Verdict(
        ["torch: peak memory 1229 MiB, it was 1024", "torch: peak memory in the steps 1229 MiB, it was 1024"]
    )


def test_noise_and_failure_do_not_pass() -> None:
    noise = verdict(result("torch", 5.0, width=0.4))
    assert not noise.faults
    assert str(noise.undecided).endswith("it was 5: too noisy to tell")
    assert verdict({"backend": "torch", "error": "it crashed"}) == Verdict(["torch: it crashed"])
    assert judge({"backend": "torch", "error": "as ever"}, {"backend": "torch", "error": "as ever"}, "x") == Verdict([])


class Machine:
    """Stand-in for `compare`: a reference that takes a second, and backends `times` faster, with noise."""

    def __init__(self, noise: float = 0.0, **times: float) -> None:
        self.times, self.noise, self.asked = times, noise, list[list[str]]()

    def __call__(self, config: str, overrides: list[str], specs: list[Any], batch: int, steps: int, n: int) -> Record:
        names = [str(spec) for spec in specs]
        self.asked.append(names)
        results: list[Record] = []
        for name in names:
            seconds = 1 / self.times.get(name, 1.0)
            spread = [seconds * (1 + self.noise * (-1) ** i * (name == "torch")) for i in range(n)]
            results.append({"backend": name, "process_seconds": [[value] for value in spread]})
            results[-1] |= {"peak_memory_gib": 1.0, "steps_peak_memory_gib": 1.0}
        for other in results[1:]:
            other["times_faster"] = check.against(results[0], other).record()
        return {"results": results}


SETTINGS: Record = {"config": "configs/quickstart.yaml", "overrides": [], "batch": 3, "steps": 5, "processes": 4}
BEFORE: Record = {
    "kind": "comparison",
    "settings": SETTINGS,
    "results": [result("reference"), result("reference:kept", 1.3), KNOWN, result("torch:eager", 2.0)],
}


def test_only_our_backends_and_first_are_measured_again() -> None:
    machine = Machine(torch=5.0, **{"torch:eager": 2.0})
    assert list(measured(BEFORE, None, machine)) == []
    assert machine.asked == [["reference", "torch", "torch:eager"]]


def test_noisy_backend_is_measured_longer_and_then_fails() -> None:
    machine = Machine(noise=0.2, torch=5.0, **{"torch:eager": 2.0})
    (fault,) = measured(BEFORE, None, machine)
    assert fault.endswith("it was 5: too noisy to tell")
    assert machine.asked == [["reference", "torch", "torch:eager"], ["reference", "torch"], ["reference", "torch"]]
    quieter = Machine(noise=0.06, torch=5.0, **{"torch:eager": 2.0})
    assert list(measured(BEFORE, None, quieter)) == []
    assert len(quieter.asked) == 2, "twice the processes are enough"


def test_slow_down_of_one_backend_is_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(torch=5.0, **{"torch:eager": 2.0 / 1.2})
    monkeypatch.setattr(check, "saved_bytes", lambda: iter(()))
    monkeypatch.setattr(check, "static_kernels", lambda: iter(()))
    monkeypatch.setattr(check, "of_this_machine", lambda: {Path("some.json"): BEFORE})
    monkeypatch.setattr(check, "measured", lambda before, path: measured(before, path, machine))
    written = tmp_path / "now.json"
    assert check.run(argparse.Namespace(exact=False, json=str(written))) == 1
    assert "torch:eager: 1.67 times faster than reference (1.62 to 1.72), it was 2" in capsys.readouterr().out
    assert [record["backend"] for record in json.loads(written.read_text())["results"]] == machine.asked[0]


def test_missing_committed_comparison_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "saved_bytes", lambda: iter(()))
    monkeypatch.setattr(check, "static_kernels", lambda: iter(()))
    monkeypatch.setattr(check, "of_this_machine", dict)
    assert check.run(argparse.Namespace(exact=False, json=None)) == 1
    assert "times and memory cannot be checked" in capsys.readouterr().out
    assert check.run(argparse.Namespace(exact=True, json=None)) == 0


def test_untracked_result_is_no_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = set(check.committed())
    assert committed
    assert all(path.parents[2] == check.RESULTS for path in committed)
    monkeypatch.setattr(check, "_known_to_git", lambda: [])
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    path = tmp_path / "machine" / "date" / "some.json"
    write_json(path, BEFORE)
    assert list(check.committed()) == [path], "all there are, where there is no git"


@pytest.mark.slow  # models of production sizes
def test_saved_bytes_equal_committed_results() -> None:
    assert list(saved_bytes()) == []


def test_changed_saved_bytes_are_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["model.use_celestial_graph=false", "model.seq_len=4", "model.label_len=2", "model.pred_len=2"]
    settings = {"config": "configs/quickstart.yaml", "overrides": small, "batch": 1}
    record = {"backend": "torch:eager", "saved_for_backward_bytes": 1}
    content = {"kind": "comparison", "settings": settings, "results": [record]}
    write_json(tmp_path / "machine" / "date" / "some.json", content)
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setattr(check, "_known_to_git", lambda: [])
    monkeypatch.setattr(check, "static_kernels", lambda: iter(()))
    assert check.run(argparse.Namespace(exact=True, json=None)) == 1
    fault = r"some\.json: torch:eager at batch 1 saves [\d,]+ bytes for the backward pass, not 1\n"
    assert re.search(fault, capsys.readouterr().out)


def test_settings_of_count_come_from_its_command() -> None:
    command = "python -m bench.step --config a.yaml --batch 3 --set run.device=cpu model.seq_len=9 --set x=1 --json b"
    settings = settings_of({"command": command, "batch": 3})
    assert settings == (str(check.ROOT / "a.yaml"), ["run.device=cpu", "model.seq_len=9", "x=1"], 3)
