"""Tests of `bench.studies.combiner`: every size is measured in processes of its own, and lines are fitted."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.backend_spec import BackendSpec, configure
from bench.studies.combiner import (
    combiner_of,
    count_passes,
    fit_line,
    lines_of,
    main,
    parse_sizes,
    random_inputs,
    run_pass,
)
from pgat_fast.config.schema import Config
from tests.bench.in_process import call_as_command, run_tasks_in_process

TINY = ("model.d_model=26", "model.n_heads=2", "run.device=cpu")
REFERENCE = BackendSpec("reference", "highest")


def config_of(combiner: str) -> Config:
    return configure(REFERENCE, "configs/production_batched.yaml", [*TINY, f"model.combiner={combiner}"])


@pytest.mark.multiprocess
def test_every_size_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run only the larger size in a process of its own; outside of tests all sizes are."""
    run_tasks_in_process(monkeypatch, "bench.studies.combiner", in_own_process=lambda task: task.get("steps") == 6)
    out = tmp_path / "combiner.json"
    arguments = ["--combiner", "batched", "--backends", "reference", "--steps", "3,6", "--repeats", "2"]
    arguments += ["--rounds", "1", "--peak-seconds", "0.01", "--json", str(out), "--set", *TINY]
    assert call_as_command(monkeypatch, main, "bench.studies.combiner", arguments) == 0
    record = json.loads(out.read_text())
    assert record["command"].startswith("python -m bench.studies.combiner --combiner batched")
    assert record["machine"]["cores"] >= 1
    assert record["order"] == ["reference, 3 steps", "reference, 6 steps"]
    (backend,) = record["results"]
    assert (backend["backend"], backend["precision"], backend["compiled"]) == ("reference", "highest", False)
    small, large = backend["sizes"]
    assert (small["steps"], large["steps"]) == (3, 6)
    for size in (small, large):
        assert 0 < size["seconds"]["quartile_1"] <= size["seconds"]["median"] <= size["seconds"]["quartile_3"] < 60
        assert 0 <= size["peak_memory_gib"] < 1
        assert 0 < size["fraction_of_matrix_peak"]["useful"] < size["fraction_of_matrix_peak"]["executed"] < 1
    assert large["useful_flops"] == 2 * small["useful_flops"]
    assert large["executed_flops"] == 2 * small["executed_flops"] > large["useful_flops"]
    assert backend["lines"]["saved_for_backward_bytes"]["largest_deviation_percent"] == pytest.approx(0, abs=1e-6)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["reference", "3"],
        ["reference", "6"],
    ]


@pytest.mark.slow  # every product is counted in Python
@pytest.mark.parametrize("combiner", ["batched", "hierarchical"])
def test_kept_reference_does_not_recompute(combiner: str) -> None:
    config = config_of(combiner)
    (executed,) = count_passes(config, REFERENCE, 1, [4])["counts"]
    (useful,) = count_passes(config, replace(REFERENCE, kept=True), 1, [4])["counts"]
    assert executed["forward_flops"] == useful["forward_flops"]
    assert useful["flops"] < executed["flops"]
    # Two products backward for one forward, except for those of the hierarchical one with constant weights.
    assert useful["flops"] == 3 * useful["forward_flops"] or combiner == "hierarchical"
    assert 2.5 * useful["forward_flops"] < useful["flops"] <= 3 * useful["forward_flops"]
    assert useful["saved_for_backward_bytes"] > executed["saved_for_backward_bytes"]


@pytest.mark.parametrize("combiner", ["batched", "hierarchical"])
def test_pass_computes_every_gradient(combiner: str) -> None:
    config = config_of(combiner)
    module = combiner_of(config, REFERENCE)
    inputs = random_inputs(config, 2, 3, torch.device("cpu"))
    for _ in range(2):  # the second pass clears the gradients of the first
        torch.manual_seed(0)
        run_pass(module, inputs, "highest", torch.device("cpu"))
        gradients = [tensor.grad for tensor in (*module.parameters(), *inputs.adjacencies)]
        assert all(gradient is not None for gradient in gradients)
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        assert norm > 0
    assert (inputs.context.grad is None) == (combiner == "batched")


def test_deviations_are_from_the_line_through_the_origin() -> None:
    assert fit_line([1, 2, 4], [3.0, 6.0, 12.0])["slope"] == pytest.approx(3)
    line = fit_line([125, 250, 500, 1000], [10 + 125, 10 + 250, 10 + 500, 10 + 1000])
    assert line["deviations_percent"][0] == line["largest_deviation_percent"] == pytest.approx(6.5, abs=0.1)


def test_failed_sizes_are_left_out_of_lines() -> None:
    sizes = [
        {"steps": steps, "seconds": {"median": 2.0 * steps}, "peak_memory_gib": 0.0, "saved_for_backward_bytes": steps}
        for steps in (1, 2)
    ]
    lines = lines_of([*sizes, {"steps": 4, "error": "no"}])
    assert lines.keys() == {"seconds", "saved_for_backward_bytes"}
    assert lines["seconds"]["slope"] == pytest.approx(2)
    assert lines_of([{"steps": 4, "error": "no"}]) == {}


def test_parse_sizes_sorts_and_rejects_invalid_ones() -> None:
    assert parse_sizes("250,125,250") == [125, 250]
    for invalid in ("", "0", "1,x", "-3", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number of at least 1"):
            parse_sizes(invalid)
