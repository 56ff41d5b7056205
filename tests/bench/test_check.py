"""The gate: what has become worse is named, noise is no verdict, and what is exact holds for the committed results."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from bench import check
from bench.check import saved_bytes, settings_of, worse

Record = dict[str, Any]


def result(backend: str, times: float | None = None, *, width: float = 0.02, memory: float = 1.0) -> Record:
    found: Record = {"backend": backend, "peak_memory_gib": memory}
    if times is not None:
        own = {"estimate": times, "low": times / (1 + width), "high": times * (1 + width), "noisy": width > 0.1}
        found["times_faster"] = own
    return found


BEFORE = [result("reference"), result("torch", 5.0)]


def faults(now: list[Record]) -> list[str]:
    return list(worse(BEFORE, now))


def test_what_is_as_it_was_or_better_is_no_fault() -> None:
    assert faults(BEFORE) == []
    assert faults([result("reference"), result("torch", 4.8)]) == []
    assert faults([result("reference"), result("torch", 9.0, memory=0.1)]) == []


def test_a_slow_down_of_20_percent_is_named() -> None:
    (fault,) = faults([result("reference"), result("torch", 5.0 / 1.2, width=0.08)])
    assert fault == "torch: 4.17 times faster than reference (3.86 to 4.5), it was 5"


def test_more_memory_is_named() -> None:
    (fault,) = faults([result("reference", memory=1.2), result("torch", 5.0)])
    assert fault == "reference: peak memory 1.2 GiB, it was 1"


def test_noise_and_failure_are_no_passes() -> None:
    (noise,) = faults([result("reference"), result("torch", 5.0, width=0.4)])
    assert noise.startswith("torch: too noisy to tell")
    (failure,) = faults([result("reference"), {"backend": "torch", "error": "it crashed"}])
    assert failure == "torch: it crashed"


def test_the_committed_results_say_what_is_saved_today() -> None:
    assert list(saved_bytes()) == []


def test_one_byte_more_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"config": "configs/quickstart.yaml", "overrides": [], "batch": 1}
    one = {"backend": "torch:eager", "saved_for_backward_bytes": 1}
    (tmp_path / "some.json").write_text(json.dumps({"kind": "comparison", "settings": settings, "results": [one]}))
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setattr(check, "static_kernels", lambda: iter(()))
    (fault,) = saved_bytes()
    assert fault.startswith("some.json: torch:eager at batch 1 saves ")
    assert fault.endswith("bytes for the backward pass, not 1")
    assert check.run(argparse.Namespace(exact=True, json=None)) == 1


def test_what_is_measured_again_is_written_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"config": "configs/quickstart.yaml", "overrides": [], "batch": 3, "steps": 5, "processes": 2}
    asked: list[Any] = []

    def compare(*arguments: Any) -> Record:
        asked.extend(arguments)
        return {"results": [result("reference"), result("torch", 5.0 / 1.2)]}

    monkeypatch.setattr(check, "saved_bytes", lambda: iter(()))
    monkeypatch.setattr(check, "static_kernels", lambda: iter(()))
    monkeypatch.setattr(check, "compare", compare)
    known = {"kind": "comparison", "settings": settings, "results": BEFORE}
    monkeypatch.setattr(check, "of_this_machine", lambda: (Path("some.json"), known))
    written = tmp_path / "now.json"
    assert check.run(argparse.Namespace(exact=False, json=str(written))) == 1
    config, overrides, variants, *numbers = asked
    assert (config, overrides, numbers) == (str(check.ROOT / "configs/quickstart.yaml"), [], [3, 5, 2])
    assert [str(variant) for variant in variants] == ["reference", "torch"]
    assert "torch: 4.17 times faster than reference" in capsys.readouterr().out
    assert json.loads(written.read_text())["results"][1]["times_faster"]["estimate"] == 5.0 / 1.2


def test_settings_of_counts_are_in_their_command() -> None:
    command = "python -m bench.step --config a.yaml --batch 3 --set run.device=cpu model.seq_len=9 --set x=1 --json b"
    found = settings_of({"command": command, "batch": 3})
    assert found == (str(check.ROOT / "a.yaml"), ["run.device=cpu", "model.seq_len=9", "x=1"], 3)
