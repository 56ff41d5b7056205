"""Training runs: their results, files and errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pgat_fast import build_model, load_config
from pgat_fast.data.load import load_splits
from pgat_fast.evaluation.split_forecasts import evaluate_split
from pgat_fast.training import setup
from pgat_fast.training.checkpoint import load_weights, newest_good
from pgat_fast.training.results import summary
from tests.pgat_fast.training.runs import run


@pytest.fixture
def learning_rates() -> Iterator[list[float]]:
    """Collect the learning rate of every optimizer step taken during the test."""
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    yield rates
    hook.remove()


def test_run_writes_results_settings_and_best_weights(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    results = run(tiny, folder)
    files = {"config.yaml", "status.json", "train.log", "metrics.jsonl", "memory.jsonl", "checkpoints"}
    files |= {"results.json", "forecasts.csv", "adjacency.csv", "intervals.json"}
    assert {path.name for path in folder.iterdir() if path.name != ".lock"} == files
    assert json.loads((folder / "results.json").read_text()) == results
    config = load_config(folder / "config.yaml")
    assert config == load_config(None, [*tiny, f"run.output={tmp_path}", "run.name=run"])
    assert results["data"]["windows"] == {"train": 20, "validation": 5, "test": 6}
    assert [epoch["optimizer_steps"] for epoch in results["epochs"]] == [5, 5]
    assert set(results["test"]["price"]["skill"]) == {"last_value", "zero_return", "drift"}

    model = build_model(config)
    load_weights(model, folder / "checkpoints" / results["checkpoints"]["best"])
    _, splits = load_splits(config.data, config.model, torch.device("cpu"))
    assert evaluate_split(model, splits.validation, "independent").loss == results["best_validation_loss"]
    assert results["best_validation_loss"] == min(results["validation_losses"])
    for line in ("zero_return", "drift", "last_value", "model skill", "checklist", "yes  every epoch finished: 2 of 2"):
        assert line in summary(results)


@pytest.mark.slow  # whole runs
def test_every_step_uses_learning_rate_of_its_epoch(
    tiny: list[str], tmp_path: Path, learning_rates: list[float]
) -> None:
    settings = ["training.epochs=3", "training.warmup_epochs=2", "training.learning_rate=0.004"]
    results = run([*tiny, *settings], tmp_path / "run")
    assert learning_rates == pytest.approx([0.002] * 5 + [0.004] * 10)
    assert [epoch["learning_rate"] for epoch in results["epochs"]] == pytest.approx([0.002, 0.004, 0.004])


@pytest.mark.slow  # whole runs
def test_accumulated_batches_have_gradient_of_one_large_batch(tiny: list[str], tmp_path: Path) -> None:
    # Without the celestial graph, `dropout` is the only dropout: the two runs draw no random numbers.
    inputs = ["use_celestial_graph=false", "data.inputs=log_Open,log_High,log_Low,log_Close,time_delta"]
    sizes = ["enc_in=5", "dec_in=5", "dropout=0", "training.max_steps=1", "training.clip_grad_norm=null"]
    gradients: list[list[torch.Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients.append([parameter.grad.clone() for parameter in parameters])

    hook = register_optimizer_step_pre_hook(keep)
    try:
        run([*tiny, *inputs, *sizes, "training.batch_size=8"], tmp_path / "large")
        run([*tiny, *inputs, *sizes, "training.gradient_accumulation_steps=2"], tmp_path / "accumulated")
    finally:
        hook.remove()
    large, accumulated = gradients
    scale = max(gradient.abs().max() for gradient in large)
    for expected, actual in zip(large, accumulated, strict=True):
        assert (expected - actual).abs().max() < 1e-4 * scale  # float32, after divisions by row sums near zero


@pytest.mark.slow  # whole runs
def test_last_step_of_epoch_may_be_shorter(tiny: list[str], tmp_path: Path, learning_rates: list[float]) -> None:
    # 20 windows, 5 batches: steps of 2, 2 and 1.
    results = run([*tiny, "training.gradient_accumulation_steps=2"], tmp_path / "run")
    assert [epoch["optimizer_steps"] for epoch in results["epochs"]] == [3, 3]
    assert len(learning_rates) == 6


def test_max_steps_ends_run_after_that_many_steps(tiny: list[str], tmp_path: Path, learning_rates: list[float]) -> None:
    results = run([*tiny, "training.epochs=9", "training.max_steps=7"], tmp_path / "run")
    assert len(learning_rates) == 7
    assert [epoch["optimizer_steps"] for epoch in results["epochs"]] == [5, 2]


@pytest.mark.slow  # whole runs
def test_patience_ends_run_that_does_not_improve(tiny: list[str], tmp_path: Path) -> None:
    # At this rate the second epoch is worse than the first.
    settings = ["training.epochs=9", "training.patience=1", "training.learning_rate=3", "training.lr_schedule=constant"]
    results = run([*tiny, *settings, "training.seed=1"], tmp_path / "run")
    assert len(results["epochs"]) == results["best_epoch"] + 1


def test_all_optional_parts_train_together(tiny: list[str], tmp_path: Path) -> None:
    parts = ["use_mixture_decoder=true", "use_stochastic_learner=true", "use_hierarchical_mapping=true"]
    more = ["combiner=hierarchical", "celestial_fusion_layers=1", "graph_processing=attention", "e_layers=1"]
    results = run([*tiny, *parts, *more, "decoder_future=known", "training.max_steps=2"], tmp_path / "run")
    assert results["test"]["scaled"]["model"]["overall"]["rmse"] < 100


def test_five_columns_train_without_celestial_graph(tiny: list[str], tmp_path: Path) -> None:
    columns = "log_Open,log_High,log_Low,log_Close,time_delta"
    sizes = ["enc_in=5", "dec_in=5", "n_heads=1", "training.max_steps=2"]
    results = run([*tiny, "use_celestial_graph=false", f"data.inputs={columns}", *sizes], tmp_path / "run")
    assert results["test"]["price"] is not None


@pytest.fixture
def compiled_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Replace compilation; return a list with the training mode of the model in each compiled call."""
    calls: list[bool] = []

    def stand_in(model: nn.Module, device: torch.device, *, regions: str, graphs: bool) -> None:
        def call(*args: Any) -> Any:
            calls.append(model.training)
            return model._call_impl(*args)

        model._compiled_call_impl = call

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # the times do not come from a compiler
    monkeypatch.setattr("pgat_fast.training.setup.compile_in_place", stand_in)
    monkeypatch.setattr("pgat_fast.model.compilation.why_not", lambda backend, device: None)
    return calls


@pytest.mark.compile
def test_only_training_is_compiled_and_results_record_it(
    tiny: list[str], tmp_path: Path, compiled_calls: list[bool]
) -> None:
    results = run([*tiny, "run.compile=on"], tmp_path / "run")
    assert compiled_calls == [True] * 10, "two epochs of five batches; no window of an evaluation"
    assert (results["compiled"], results["precision"]) == (True, "highest")
    assert newest_compiled(tmp_path / "run") is True


def newest_compiled(folder: Path) -> Any:
    loaded = newest_good(folder / "checkpoints")
    assert loaded is not None
    return loaded[1].about["compiled"]


@pytest.mark.slow  # whole runs
def test_resumed_run_is_compiled_as_it_was_before(
    tiny: list[str], tmp_path: Path, compiled_calls: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "expected_compile_seconds", lambda *args: 0.0)
    results = run([*tiny, "training.max_steps=4"], tmp_path / "run")
    assert (results["compiled"], len(compiled_calls)) == (True, 4)
    monkeypatch.setattr(setup, "expected_compile_seconds", lambda *args: 1e9)
    results = run(tiny, tmp_path / "run", resume=tmp_path / "run")
    assert (results["compiled"], len(compiled_calls)) == (True, 10)
    assert not run(tiny, tmp_path / "other")["compiled"]


@pytest.mark.slow  # whole runs
def test_resuming_with_other_kernels_is_logged(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert run([*tiny, "training.max_steps=2"], tmp_path / "run")["kernels"] == "none"
    run([*tiny, "training.max_steps=3"], tmp_path / "run", resume=tmp_path / "run")
    assert "kernels" not in caplog.text
    monkeypatch.setattr("pgat_fast.training.setup.kernel_summary", lambda model: "measured abc")
    run([*tiny, "training.max_steps=4"], tmp_path / "run", resume=tmp_path / "run")
    assert "kernels: the run began with none and continues with measured abc" in caplog.text
