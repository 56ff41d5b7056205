"""Reading the files of a run, with missing and damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from pgat_fast.data.bodies import BODIES
from pgat_fast.errors import DataError
from pgat_fast.report.run_files import RunFiles, read_run
from pgat_fast.training.checkpoint import Checkpoint, save_checkpoint
from pgat_fast.training.run_folder import write_status
from tests.pgat_fast.report.changes import make_unfinished, results_of


def test_finished_run_is_complete(trained: Path) -> None:
    results, run = results_of(trained), read_run(trained)
    assert run.results == results
    assert (run.state, run.name, run.best_epoch, run.missing) == ("finished", "nightly", results["best_epoch"], {})
    assert run.best == results["checkpoints"]["best"]
    assert run.checkpoints == results["checkpoints"]["kept"]
    assert run.memory_limits == {"limit_gib": 6.0, "device_limit_gib": None}
    assert run.forecasts is not None
    assert len(run.forecasts) == 6 * 2 * 4
    assert run.forecasts["horizon"].unique().tolist() == [1, 2]
    assert np.isfinite(run.forecasts["price_forecast"]).all()
    assert run.adjacency is not None
    assert run.adjacency.shape == (13, 13)
    assert list(run.adjacency.index) == list(run.adjacency.columns) == list(BODIES)


def test_epochs_of_unfinished_run_come_from_metrics(finished: Path) -> None:
    losses = results_of(finished)["validation_losses"]
    run = read_run(make_unfinished(finished, "stopped", reason="SIGTERM", exit_code=143))
    assert [epoch["epoch"] for epoch in run.epochs] == [1, 2, 3]
    assert run.best_epoch == 1 + losses.index(min(losses))
    assert run.results == {}
    assert run.forecasts is None
    assert set(run.missing) == {"results.json", "forecasts.csv", "adjacency.csv", "checkpoints"}
    assert run.missing["results.json"].endswith("this run is stopped")


def test_missing_file_of_finished_run_is_reported_as_deleted(finished: Path) -> None:
    (finished / "adjacency.csv").unlink()
    assert "moved or deleted" in read_run(finished).missing["adjacency.csv"]


def test_folder_with_status_only_is_a_run(tmp_path: Path) -> None:
    write_status(tmp_path, "running")
    run = read_run(tmp_path)
    assert (run.state, run.epochs, run.best_epoch, run.config) == ("running", [], None, None)
    assert len(run.missing) == 7


def test_memory_limits_are_unknown_without_results_and_checkpoints() -> None:
    assert RunFiles(Path("run")).memory_limits == {"limit_gib": None, "device_limit_gib": None}


KEYS = b"origin,date,horizon,target,forecast,truth\n"
DAMAGE = [
    ("results.json", b'{"name": "ni', r"results\.json: damaged, or not JSON"),
    ("results.json", b'{"name": NaN}', r"results\.json: .*NaN is not JSON"),
    ("results.json", b"[]", r"results\.json: holds a list, not an object"),
    ("results.json", b"{}", r"results\.json: not the format of this version of pgat-fast: name: Field required"),
    ("results.json", b"[" * 200_000, r"results\.json: nested too deeply"),
    ("status.json", b"", r"status\.json: damaged, or not JSON"),
    ("config.yaml", b"\xff\xfe", r"config\.yaml: damaged: byte 0 is not UTF-8 text"),
    ("adjacency.csv", b",sun,moon\nsun,1,2\n", r"adjacency\.csv: the names of rows and columns differ"),
    ("adjacency.csv", b",sun\nsun,x\n", r"adjacency\.csv: column sun: could not convert"),
    ("adjacency.csv", b",sun\nsun\n", r"adjacency\.csv: line 2: 1 cells, expected 2"),
    ("forecasts.csv", b"", r"forecasts\.csv: empty"),
    ("forecasts.csv", b"a,a\n", r"forecasts\.csv: line 1: duplicate column name"),
    ("forecasts.csv", b"a,b\n1,2\n", r"forecasts\.csv: column origin is missing"),
    ("forecasts.csv", b"\x00\xff\n", r"forecasts\.csv: damaged: byte 1 is not UTF-8 text"),
    ("forecasts.csv", b'"a\n', r"forecasts\.csv: not CSV"),
    ("forecasts.csv", KEYS, r"no rows"),
    ("forecasts.csv", KEYS + b"2026-01-01,2026-01-02,1,log_Close,0.1\n", r"line 2: 5 cells, expected 6"),
    ("forecasts.csv", KEYS + b"2026-01-01,2026-01-02,1,log_Close,0.1,0.2,0.3\n", r"line 2: 7 cells, expected 6"),
    ("forecasts.csv", KEYS + b"2026-01-01,2026-13-02,1,log_Close,0.1,0.2\n", r"column date"),
    ("forecasts.csv", KEYS + b"2026-01-01,,1,log_Close,0.1,0.2\n", r"column date: a cell is empty"),
    ("forecasts.csv", KEYS + b"2026-01-01,2026-01-02,1.5,log_Close,0.1,0.2\n", r"column horizon: expected integers"),
    ("forecasts.csv", KEYS + b"2026-01-01,2026-01-02,,log_Close,0.1,0.2\n", r"column horizon: expected integers"),
    ("forecasts.csv", KEYS + b"2026-01-01,2026-01-02,1,log_Close,much,0.2\n", r"column forecast: could not convert"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE)
def test_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_status(tmp_path, "running")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path)


def test_newest_of_two_checkpoints_at_one_step_names_the_best(finished: Path) -> None:
    """Before and after the validation of an epoch are two checkpoints of one step."""
    run = make_unfinished(finished, "stopped")
    names = ["epoch-0000-step-00000005", "epoch-0001-step-00000005"]
    for name, best in zip(reversed(names), (names[1], None), strict=True):
        save_checkpoint(run / "checkpoints", name, Checkpoint({}, about={"best": best}))
    assert (read_run(run).checkpoints, read_run(run).best) == (names, names[1])


def test_checkpoint_with_damaged_manifest_is_listed(tmp_path: Path) -> None:
    write_status(tmp_path, "stopped")
    for name in ("epoch-0000-step-00000009", "epoch-0001-step-00000010", ".epoch-0001-step-00000011.7.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").write_text(json.dumps({"format": "?"}))
    run = read_run(tmp_path)
    assert run.checkpoints == ["epoch-0000-step-00000009", "epoch-0001-step-00000010"]
    assert run.best is None
