"""Reading the files of a run, with missing and damaged ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from pgat_fast.errors import DataError
from pgat_fast.report.run_files import RunFiles, read_run
from pgat_fast.training.run_folder import write_status
from tests.pgat_fast.report.example_run import STEPS, write_finished_run, write_unfinished_run


def test_finished_run_is_complete(tmp_path: Path) -> None:
    results = write_finished_run(tmp_path / "run", epochs=3, windows=4, days=2)
    run = read_run(tmp_path / "run")
    assert run.results == results
    assert (run.state, run.name, run.best_epoch, run.missing) == ("finished", "nightly", results["best_epoch"], {})
    assert run.best == results["checkpoints"]["best"]
    assert run.checkpoints == results["checkpoints"]["kept"]
    assert run.memory_limits == {"limit_gib": 6.0, "device_limit_gib": None}
    assert run.forecasts is not None
    assert len(run.forecasts.dates) == 4 * 2 * 4
    assert run.adjacency is not None
    assert run.adjacency.weights.shape == (13, 13)
    np.testing.assert_allclose(run.adjacency.weights.sum(axis=1), 1)  # rows: what a node receives


def test_series_is_sorted_by_date(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_finished_run(path, epochs=1, windows=5, days=2)
    lines = (path / "forecasts.csv").read_text().splitlines()
    (path / "forecasts.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    forecasts = read_run(path).forecasts
    assert forecasts is not None
    dates, columns = forecasts.series("log_Low", 2)
    assert len(dates) == 5
    assert (np.diff(dates) > np.timedelta64(0, "D")).all()
    assert columns["price_truth"].shape == (5,)
    assert forecasts.has_prices("log_Low")


def test_epochs_of_unfinished_run_come_from_metrics(tmp_path: Path) -> None:
    write_unfinished_run(tmp_path / "run", "stopped", epochs=3, reason="SIGTERM", exit_code=143)
    run = read_run(tmp_path / "run")
    assert [epoch["epoch"] for epoch in run.epochs] == [1, 2, 3]
    assert run.best_epoch == 3
    assert run.results == {}
    assert run.forecasts is None
    assert set(run.missing) == {"results.json", "forecasts.csv", "adjacency.csv", "checkpoints"}
    assert run.missing["results.json"].endswith("this run is stopped")


def test_missing_file_of_finished_run_is_reported_as_deleted(tmp_path: Path) -> None:
    write_finished_run(tmp_path / "run", epochs=1, windows=2, days=1)
    (tmp_path / "run" / "adjacency.csv").unlink()
    assert "moved or deleted" in read_run(tmp_path / "run").missing["adjacency.csv"]


def test_folder_with_status_only_is_a_run(tmp_path: Path) -> None:
    write_status(tmp_path, "running")
    run = read_run(tmp_path)
    assert (run.state, run.epochs, run.best_epoch, run.config) == ("running", [], None, None)
    assert len(run.missing) == 7


def test_repeated_steps_of_resumed_run_count_once(tmp_path: Path) -> None:
    write_unfinished_run(tmp_path / "run", "running", epochs=3)
    steps = [line["step"] for line in read_run(tmp_path / "run").metrics if line["stage"] == "train"]
    assert steps == list(range(10, 3 * STEPS + 1, 10))


def test_memory_limits_are_unknown_without_results_and_checkpoints() -> None:
    assert RunFiles(Path("run")).memory_limits == {"limit_gib": None, "device_limit_gib": None}


@pytest.mark.parametrize("exists", [True, False])
def test_folder_without_run_is_refused(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "elsewhere"
    if exists:
        folder.mkdir()
    reason = "it has none of status.json, config.yaml, results.json" if exists else "there is no such folder"
    with pytest.raises(DataError, match=rf"elsewhere: {reason}: name the folder of a run"):
        read_run(folder)


DAMAGE = [
    ("results.json", b'{"name": "ni', r"results\.json: damaged or not JSON"),
    ("results.json", b'{"name": NaN}', r"results\.json: .*NaN is not JSON"),
    ("results.json", b"[]", r"results\.json: holds a list, not an object"),
    ("results.json", b"{}", r"results\.json: not the format of this version of pgat-fast: name: Field required"),
    ("results.json", b"[" * 200_000, r"results\.json: nested too deeply"),
    ("status.json", b"", r"status\.json: damaged or not JSON"),
    ("config.yaml", b"\xff\xfe", r"config\.yaml: damaged: byte 0 is not UTF-8 text"),
    ("forecasts.csv", b"", r"forecasts\.csv: empty"),
    ("forecasts.csv", b"a,a\n", r"forecasts\.csv: line 1: duplicate column name"),
    ("forecasts.csv", b"a,b\n1,2\n", r"forecasts\.csv: column origin is missing"),
    ("forecasts.csv", b"\x00\xff\n", r"forecasts\.csv: damaged or not CSV"),
    ("adjacency.csv", b",sun,moon\nsun,1,2\n", r"adjacency\.csv: the names of rows and columns differ"),
    ("adjacency.csv", b",sun\nsun,x\n", r"adjacency\.csv: column sun: could not convert"),
    ("adjacency.csv", b",sun\nsun\n", r"adjacency\.csv: line 2: 1 cells, expected 2"),
]


@pytest.mark.parametrize(("name", "content", "message"), DAMAGE)
def test_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_finished_run(tmp_path / "run", epochs=1, windows=2, days=1)
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_run(tmp_path / "run")


KEYS = "origin,date,horizon,target,forecast,truth"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", r"no rows"),
        ("2026-01-01,2026-01-02,1,log_Close,0.1", r"line 2: 5 cells, expected 6"),
        ("2026-01-01,2026-01-02,1,log_Close,0.1,0.2,0.3", r"line 2: 7 cells, expected 6"),
        ("2026-01-01,2026-13-02,1,log_Close,0.1,0.2", r"column date"),
        ("2026-01-01,,1,log_Close,0.1,0.2", r"column date: a cell is empty"),
        ("2026-01-01,2026-01-02,1.5,log_Close,0.1,0.2", r"column horizon: expected integers from 1"),
        ("2026-01-01,2026-01-02,,log_Close,0.1,0.2", r"column horizon: expected integers from 1"),
        ("2026-01-01,2026-01-02,1,log_Close,much,0.2", r"column forecast: could not convert"),
    ],
)
def test_damaged_forecast_row_is_refused(tmp_path: Path, row: str, message: str) -> None:
    write_status(tmp_path, "running")
    (tmp_path / "forecasts.csv").write_text(f"{KEYS}\n{row}\n" if row else f"{KEYS}\n")
    with pytest.raises(DataError, match=message):
        read_run(tmp_path)


def test_checkpoint_with_damaged_manifest_is_listed(tmp_path: Path) -> None:
    write_status(tmp_path, "stopped")
    for name in ("epoch-0000-step-00000009", "epoch-0001-step-00000010", ".epoch-0001-step-00000011.7.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").write_text(json.dumps({"format": "?"}))
    run = read_run(tmp_path)
    assert run.checkpoints == ["epoch-0000-step-00000009", "epoch-0001-step-00000010"]
    assert run.best is None
