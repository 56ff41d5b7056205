"""Comparison of the first compiled step of a run with an eager one."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgat_fast.errors import BackendError
from pgat_fast.training import setup
from tests.pgat_fast.training.forecaster import Forecaster
from tests.pgat_fast.training.runs import run


class Twice(torch.autograd.Function):
    """The identity with a gradient that is wrong by `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the compiler by one whose gradients are `factor` times as large, or that raises `error`."""
    fault: dict[str, Any] = {"factor": 1.0, "error": None}

    def compile_in_place(model: nn.Module, device: torch.device, **settings: object) -> None:
        def call(*inputs: Tensor) -> Any:
            if fault["error"] is not None:
                raise fault["error"]
            forecast, diagnostics = model._call_impl(*inputs)
            return Twice.apply(forecast, fault["factor"]), diagnostics

        model._compiled_call_impl = call

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # the times do not come from a compiler
    monkeypatch.setattr(setup, "build_model", Forecaster)
    monkeypatch.setattr(setup, "resolve_backend", lambda backend: "torch")
    monkeypatch.setattr(setup, "compile_in_place", compile_in_place)
    monkeypatch.setattr("pgat_fast.model.compilation.why_not", lambda backend, device: None)
    monkeypatch.setattr(setup, "expected_compile_seconds", lambda *args: 0.0)
    return fault


def losses(results: dict[str, Any]) -> Any:
    return results["train_losses"], results["validation_losses"]


def test_comparison_with_correct_gradients_is_recorded_and_changes_nothing(
    tiny: list[str], tmp_path: Path, compiler: dict[str, Any]
) -> None:
    eager = run([*tiny, "run.compile=off"], tmp_path / "eager")
    compiled = run([*tiny, "run.compile=whole"], tmp_path / "compiled")
    assert losses(compiled) == losses(eager), "neither the weights nor the random state are touched by the comparison"
    check = compiled["compile_check"]
    assert (check["regions"], check["fault"], check["worst_error"]) == ("whole", None, 0.0)
    assert eager["compile_check"] is None


@pytest.mark.parametrize("accumulated", [1, 2])
def test_auto_continues_eagerly_after_wrong_gradients(
    accumulated: int, tiny: list[str], tmp_path: Path, compiler: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pgat_fast")
    settings = [*tiny, f"training.gradient_accumulation_steps={accumulated}"]
    eager = run([*settings, "run.compile=off"], tmp_path / "eager")
    compiler["factor"] = 2.3
    results = run([*settings, "run.compile=auto"], tmp_path / "run")
    assert losses(results) == losses(eager)
    assert results["compiled"] is False
    assert results["compile_check"]["worst_error"] == pytest.approx(1.3, rel=1e-4)
    assert sorted(results["compile_check"]["wrong"]) == ["inner.bias", "inner.weight", "outer.bias", "outer.weight"]
    (line,) = [text for text in caplog.messages if "continues without compilation" in text]
    assert "outer.weight by 1.3" in line
    metrics = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in metrics].count("compilation") == 1


@pytest.mark.parametrize("asked", ["on", "whole"])
def test_wrong_gradients_end_run_that_requires_compilation_before_first_step(
    asked: str, tiny: list[str], tmp_path: Path, compiler: dict[str, Any]
) -> None:
    compiler["factor"] = 2.3
    with pytest.raises(BackendError, match=r"outer\.weight by 1\.3.*Set run\.compile=off"):
        run([*tiny, f"run.compile={asked}"], tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_bytes())
    assert (status["state"], status["step"], status["exit_code"]) == ("failed", 0, 2)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["epoch-0000-step-00000000"]


def test_error_within_rounding_is_no_fault(tiny: list[str], tmp_path: Path, compiler: dict[str, Any]) -> None:
    compiler["factor"] = 1 + 1e-6
    check = run([*tiny, "run.compile=on"], tmp_path / "run")["compile_check"]
    assert check["fault"] is None
    assert 0 < check["worst_error"] < 1e-5


def test_auto_continues_eagerly_after_compiler_failure(
    tiny: list[str], tmp_path: Path, compiler: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pgat_fast")
    eager = run([*tiny, "run.compile=off"], tmp_path / "eager")
    compiler["error"] = RuntimeError("file too short\n" + "a line of C++\n" * 150)
    results = run([*tiny, "run.compile=auto"], tmp_path / "run")
    assert losses(results) == losses(eager)
    (line,) = [text for text in caplog.messages if "continues without compilation" in text]
    assert "RuntimeError: file too short" in line
    assert "delete that folder" in line
    assert "a line of C++" not in line
    with pytest.raises(BackendError, match="file too short") as raised:
        run([*tiny, "run.compile=on"], tmp_path / "refused")
    assert len(str(raised.value)) < 1000


def test_infinite_gradients_of_compiled_step_only_are_a_fault(
    tiny: list[str], tmp_path: Path, compiler: dict[str, Any]
) -> None:
    eager = run([*tiny, "run.compile=off"], tmp_path / "eager")
    compiler["factor"] = float("inf")
    results = run([*tiny, "run.compile=auto"], tmp_path / "run")
    assert losses(results) == losses(eager)
    check = json.loads((tmp_path / "run" / "results.json").read_bytes())["compile_check"]
    assert check["worst_error"] is None, "JSON has no infinity"
    assert sorted(check["wrong"]) == ["inner.bias", "inner.weight", "outer.bias", "outer.weight"]


def test_next_step_is_compared_if_eager_gradients_are_not_finite(
    tiny: list[str], tmp_path: Path, compiler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*tiny, "training.nonfinite_steps=1"]
    faulty = iter([True])
    forward = Forecaster.forward

    def overflow_once(self: Forecaster, *inputs: Tensor) -> Any:
        forecast, diagnostics = forward(self, *inputs)
        return Twice.apply(forecast, float("inf") if self.training and next(faulty, False) else 1.0), diagnostics

    monkeypatch.setattr(Forecaster, "forward", overflow_once)
    results = run([*settings, "run.compile=on"], tmp_path / "run")
    metrics = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    checks = [entry for entry in metrics if entry["stage"] == "compilation"]
    assert [(entry["worst_error"], entry["fault"]) for entry in checks] == [(None, None), (0.0, None)]
    assert results["compile_check"]["worst_error"] == 0.0
