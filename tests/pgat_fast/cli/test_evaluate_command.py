"""The command `pgat-fast evaluate`, on the test windows and as a backtest."""

import json
from pathlib import Path

import pytest

from pgat_fast.cli import main
from pgat_fast.forecasting.evaluate import evaluate
from pgat_fast.forecasting.load_run import load_run
from tests.pgat_fast.training.runs import run


def test_evaluate_reproduces_results_of_run_bit_exactly(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(tiny, tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    best = results["checkpoints"]["best"]
    folder = tmp_path / "run" / f"evaluation-{best}"
    evaluation = json.loads((folder / "evaluation.json").read_bytes())
    assert evaluation == {"checkpoint": best, "test": results["test"], "adversarial": results["adversarial"]}
    for name in ("forecasts.csv", "adjacency.csv", "intervals.json"):
        assert (folder / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    for line in (best, "zero_return", "model skill"):
        assert line in printed


@pytest.mark.slow  # evaluates a run several times
def test_metrics_do_not_depend_on_batch_size(tiny: list[str], tmp_path: Path) -> None:
    run(tiny, tmp_path / "run")
    metrics = [
        evaluate(load_run(tmp_path / "run", overrides=[f"training.batch_size={size}"])).test for size in (1, 3, 16)
    ]
    assert metrics[0] == metrics[1] == metrics[2]


@pytest.mark.slow  # the evaluation of a run
def test_any_checkpoint_is_evaluated_into_folder_of_its_name(tiny: list[str], tmp_path: Path) -> None:
    run(tiny, tmp_path / "run")
    first = "epoch-0000-step-00000000"
    assert main(["evaluate", str(tmp_path / "run"), "--checkpoint", first, "--quiet"]) == 0
    assert (tmp_path / "run" / f"evaluation-{first}" / "evaluation.json").is_file()


def test_data_with_other_scale_are_rejected(
    tiny: list[str], tmp_path: Path, long_data_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny, tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--quiet", "--set", f"data.path={long_data_file}"]) == 2
    assert "the scale of the inputs differs from that of the training" in capsys.readouterr().err


@pytest.mark.slow  # whole runs
def test_backtest_is_printed_and_written(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([*tiny, "training.max_steps=2"], tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--origins", "2", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "skill over all origins" in printed
    assert printed.count("drift") == 3  # two columns, and a row of the summary
    assert (tmp_path / "run" / "backtest" / "backtest.json").is_file()


def test_missing_run_is_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "nowhere"), "--origins", "2"]) == 2
    assert "nowhere" in capsys.readouterr().err
