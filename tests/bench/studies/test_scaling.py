"""Tests of `bench.studies.scaling`: measurements of small sizes."""

import json
import re
from pathlib import Path

import pytest

from bench.studies import scaling
from pgat_fast.cli import build_parser, main
from tests.bench.in_process import run_tasks_in_process


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
    assert history["seconds_exponent"] is None, "one size has no exponent"
    for result in (batch, bodies):
        (record,) = result["records"]
        assert record["seconds"]["median"] > 0
        assert record["memory_gib"] >= 0
        assert 0 <= record["system_share"] <= 1
    assert bodies["records"][0]["memory_gib"] > 0, "in a process that has freed nothing before"
    assert re.search(r"history +torch:eager +exponent +- +-", capsys.readouterr().out)
