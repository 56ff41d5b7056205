"""The commands `pgat-fast plan` and `pgat-fast info`."""

import json

import pytest

from pgat_fast.cli import main


@pytest.mark.slow  # steps are traced, operator by operator
def test_plan_prints_table(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "configs/production_batched.yaml", "--set", *tiny]) == 0
    printed = capsys.readouterr().out
    for row in (
        "parameters",
        "forward pass of a batch",
        "process at its peak",
        "largest batch that fits",
        "a checkpoint",
    ):
        assert row in printed


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_plan_prints_json(
    backend: str, tiny: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The search counts a step for each batch that it tries; the test of the table covers it.
    monkeypatch.setattr("pgat_fast.plan.make.largest_batch", lambda *how: None)
    assert main(["plan", "--json", "--backend", backend, "--set", *tiny]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["backend"] == backend
    assert plan["work"]["train_windows"] == 20
    assert plan["memory"]["process"] > plan["memory"]["tensors"] > plan["memory"]["kept"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--set", "model.seq_len=-1"], "model.seq_len"),
        (["--backend", "fast"], "backend is 'fast', not one of auto, reference"),
        (["--backend", "triton"], "Triton kernels run on GPUs, not on cpu"),
    ],
)
def test_plan_rejects_invalid_arguments(
    arguments: list[str], message: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert not printed.out


def test_info_prints_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["versions"]["torch"] in text
    assert info["cpu"]["model"] in text
    assert info["backends"]["available"]["triton"] == {
        "runs": False,
        "reason": "Triton kernels run on GPUs, not on cpu",
    }


def test_info_kernels_lists_operators_with_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--kernels"]) == 0
    text = capsys.readouterr().out
    assert main(["info", "--kernels", "--json"]) == 0
    rows = {row["operator"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) <= set(text.split())
    assert rows["graph_attention"]["triton"] == "plain torch"
    assert rows["graph_attention"]["reason"] == "Triton kernels run on GPUs, not on cpu"
    assert rows["query_attention"]["reason"] == "no kernel yet"
