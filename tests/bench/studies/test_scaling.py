"""Tests of `bench.studies.scaling`: exponents of made-up figures, and measurements of small sizes."""

import json
from pathlib import Path

import pytest

from bench.studies import scaling
from pgat_fast.cli import build_parser, main
from tests.bench.in_process import run_tasks_in_process


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_exponent_is_that_of_large_sizes(power: float) -> None:
    sizes = [64, 128, 256, 512, 1024, 2000]
    assert scaling.exponent(sizes, [1e3 + size**power for size in sizes]) == pytest.approx(power, abs=0.06)
    assert scaling.exponent(sizes, [size**power for size in sizes]) == pytest.approx(power, abs=0.06)
    assert scaling.exponent([4, 5], [1.0, 2.0]) is None


def test_command_offers_every_quantity() -> None:
    args = build_parser().parse_args(["bench", "scaling"])
    assert set(args.what) == set(scaling.SIZES)


@pytest.mark.multiprocess
def test_small_sizes_are_measured_and_failures_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_tasks_in_process(monkeypatch, "bench.studies.scaling", in_own_process=lambda task: task["what"] == "bodies")
    monkeypatch.setattr(scaling, "SIZES", {"history": (8, 0), "batch": (1,), "bodies": (8,)})
    path = tmp_path / "scaling.json"
    small = ["model.label_len=3", "model.pred_len=2", "model.d_model=26", "run.device=cpu"]
    assert main(["bench", "scaling", "--backends", "torch:eager", "--json", str(path), "--set", *small]) == 1
    history, batch, bodies = json.loads(path.read_text())["results"]
    assert "error" not in history["records"][0]
    assert "seq_len" in history["records"][1]["error"]
    assert history["seconds_exponent"] is None, "one size says nothing"
    for result in (batch, bodies):
        (record,) = result["records"]
        assert record["seconds"]["median"] > 0
        assert record["memory_gib"] >= 0
        assert 0 <= record["system_share"] <= 1
    assert bodies["records"][0]["memory_gib"] > 0, "in a process that has freed nothing before"
    assert "exponent of time not known" in capsys.readouterr().out
