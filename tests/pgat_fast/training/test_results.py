"""Results of a run: their schema, and the checklist."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pgat_fast.training.results_schema import SCHEMA_FILE, checked, schema
from tests.pgat_fast.training.runs import run


def test_results_match_committed_schema(tiny: list[str], tmp_path: Path) -> None:
    assert SCHEMA_FILE.read_text() == schema(), "write it anew: python -m pgat_fast.training.results_schema"
    results = run([*tiny, "training.max_steps=2"], tmp_path / "run")
    assert checked(results) == results
    with pytest.raises(ValidationError, match="best_epoch"):
        checked({key: value for key, value in results.items() if key != "best_epoch"})
    with pytest.raises(ValidationError, match="finite"):
        checked(results | {"best_validation_loss": float("nan")})


def test_checklist_fails_checks_that_run_does_not_meet(tiny: list[str], tmp_path: Path) -> None:
    results = run([*tiny, "training.epochs=3", "training.max_steps=2"], tmp_path / "run")
    lines = {line["check"]: line for line in results["checklist"]}
    assert len(lines) == 10
    assert lines["every epoch finished"] == {
        "check": "every epoch finished", "passed": False, "figure": "0 of 3: training.max_steps 2 reached",
    }  # fmt: skip
    assert lines["every target predicted"]["passed"]
    assert lines["all adversarial scenarios ran and stayed finite"]["figure"] == "5 of 5"
    assert lines["checkpoints verified"]["passed"]
    rmse = results["test"]["scaled"]["model"]["overall"]["rmse"]
    assert lines["scaled test RMSE under 1.0"]["passed"] is (rmse < 1.0)
    for name, skill in results["test"]["scaled"]["skill"].items():
        assert lines[f"skill against {name} above 0"]["passed"] is (skill > 0)
