"""Tests of `bench.compare` and `bench.profile`: parity first, steps in turns, the table, and failures."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pytest

from bench import compare, parity, profile, result_files
from bench.backend_spec import QUICKSTART
from bench.processes import attempt
from pgat_fast.cli import main
from pgat_fast.errors import DataError
from pgat_fast.utils.io import write_json
from tests.bench.planting import plant

SMALL = ["model.seq_len=6", "model.label_len=3", "model.pred_len=2", "model.d_model=26", "model.n_heads=2"]
SMALL += ["model.fusion_layers=1", "run.device=cpu", "run.compile=off"]


@pytest.mark.multiprocess
def test_table_has_all_requested_backends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Take the steps in processes, whose memory is measured; comparing and counting need none of their own."""
    monkeypatch.setattr(compare, "run_task", lambda module, task, limit: attempt(compare.prepare, task))
    path = tmp_path / "figures.json"
    arguments = ["--backends", "reference,torch:eager", "--steps", "2", "--processes", "2", "--json", str(path)]
    assert main(["bench", "compare", *arguments, "--set", *SMALL]) == 0
    table, explained = capsys.readouterr().out.split("\n\n", maxsplit=1)
    head, *rows = table.splitlines()
    assert "configs/quickstart.yaml, batch 1" in explained
    assert "\nreference           the model in plain PyTorch" in explained
    assert "\ntorch               ours" in explained
    assert "without activation checkpointing" not in explained, "only what is in the table"
    assert head.split("  ")[0] == "backend"
    assert [row.split()[0] for row in rows] == ["reference", "torch:eager"]
    result = json.loads(path.read_text())
    assert result["order"] == ["reference", "torch:eager", "torch:eager", "reference"]
    first, other = result["results"]
    assert [len(seconds) for seconds in other["process_seconds"]] == [2, 2]
    assert other["times_faster"]["low"] <= other["times_faster"]["estimate"] <= other["times_faster"]["high"]
    assert 0 < other["saved_for_backward_bytes"] < first["saved_for_backward_bytes"]
    assert 0 < first["steps_peak_memory_gib"] <= first["peak_memory_gib"]
    assert result["settings"]["overrides"] == SMALL


def test_backend_that_differs_from_reference_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "torch", "head")
    parity.require_parity.cache_clear()
    with pytest.raises(parity.ParityError, match=r"the forecast differs from the reference's by .* nothing is timed"):
        parity.require_parity("torch", "batched")
    parity.require_parity.cache_clear()


class Served:
    """Stand-in for `compare.Server`, without the process: the backend `none` fails, the others take steps."""

    def __init__(self, task: dict[str, Any], environment: object) -> None:
        self.error = "BackendError: none" if task["spec"]["backend"] == "none" else None

    def ask(self, word: str) -> dict[str, Any]:
        if self.error:
            return {"error": self.error}
        return {"seconds": 0.5} if word == "step" else {"device": "cpu"}

    def close(self) -> None:
        self.error = "closed"


def test_failed_backend_is_reported_and_others_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "Server", Served)
    tasks = {
        "reference": {"spec": {"backend": "reference"}, "config": QUICKSTART, "overrides": SMALL, "batch": 1},
        "nothing": {"spec": {"backend": "none"}, "config": QUICKSTART, "overrides": SMALL, "batch": 1},
    }
    records, order = compare.take_steps(tasks, processes=2, steps=1)
    assert "BackendError" in records["nothing"][0]["error"]
    assert [len(record["seconds"]) for record in records["reference"]] == [1, 1]
    assert order == ["reference", "nothing", "reference"]
    table = compare.as_table([compare.summarize("nothing", {}, records["nothing"])])
    assert "BackendError" in table


def test_process_answers_with_error_of_its_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "end_first", lambda: None)  # it affects the whole process
    task = {"spec": {"backend": "none"}, "config": QUICKSTART, "overrides": SMALL, "batch": 1}
    assert compare.serve(task) == 0
    assert json.loads(capsys.readouterr().out)["error"].startswith("BackendError")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backends", "slow"], "--backends: 'slow': 'slow' is not a backend"),
        (["--processes", "1"], "--processes must be at least 2"),
        (["--steps", "0"], "--steps is 0: at least 1"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_invalid_arguments_end_command_before_measuring(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert main(["bench", "compare", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("gpu", "processor", "folder"),
    [
        (None, "AMD EPYC 9V74 (avx2)", "amd-epyc-9v74-2-cores"),
        (None, "AMD EPYC (cpu family 25, model 1, avx2)", "amd-epyc-zen3-2-cores"),
        ("NVIDIA H100 80GB HBM3", "AMD EPYC (avx2)", "nvidia-h100-80gb-hbm3"),
    ],
)
def test_result_file_is_in_folder_of_machine_and_day(
    gpu: str | None, processor: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = {"gpu": gpu, "processor": processor, "cores": 2, "date": "2026-11-25T10:00:00+00:00"}
    monkeypatch.setattr(compare, "describe", lambda: machine)
    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    first = compare.result_file()
    assert first == tmp_path / folder / "2026-11-25" / "comparison.json"
    first.parent.mkdir(parents=True)
    first.touch()
    assert compare.result_file().name == "comparison-2.json"


def test_newest_result_of_a_machine_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_files, "RESULTS", tmp_path)
    for machine, date in (("a", "2026-01-02"), ("a", "2026-01-10"), ("b", "2026-02-01")):
        write_json(tmp_path / machine / date / "step.json", {"of": machine + date})
    assert result_files.load("step", "a") == {"of": "a2026-01-10"}
    assert result_files.load("step") == {"of": "b2026-02-01"}
    with pytest.raises(DataError, match=r"bench/results/c/\*/step.json is missing"):
        result_files.load("step", "c")


@pytest.mark.slow  # steps under a profiler
def test_profile_writes_trace_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*SMALL, "model.use_celestial_graph=false"]  # without its 20,000 operators
    args = argparse.Namespace(
        config=None, overrides=overrides, backend="reference", batch=1, steps=2, out=str(tmp_path)
    )
    assert profile.run(args) == 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    records = json.loads((tmp_path / "operators.json").read_text())["operators"]
    assert sum(record["share"] for record in records) == pytest.approx(1)
    shares = [record["share"] for record in records]
    assert shares == sorted(shares, reverse=True)
    products = [record for record in records if record["operator"] in ("aten::addmm", "aten::bmm", "aten::mm")]
    assert products
    assert all(0 < record["fraction_of_peak"] < 1.5 for record in products)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["operator", "calls"]
    assert len(lines) == 1 + 10 + 2
    assert (tmp_path / "operators.csv").read_text().startswith("operator,calls_per_step")
