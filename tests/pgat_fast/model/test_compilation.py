"""Decisions about compilation, reasons against it, and equality of compiled and eager models."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import load_config
from pgat_fast.errors import BackendError
from pgat_fast.model import compilation
from pgat_fast.model.compilation import (
    COMPILE_SECONDS,
    EXPECTED_SPEEDUP,
    STEP_SECONDS,
    Regions,
    compile_in_place,
    decide_compile,
    eager,
    expected_batch_seconds,
    is_compiled,
    why_not,
)
from pgat_fast.model.precision import float32_products_in, products_in
from pgat_kernels.ops.dropout import draw_seed, dropout

CPU = torch.device("cpu")
BREAK_EVEN = COMPILE_SECONDS["cpu"] / (1 - 1 / EXPECTED_SPEEDUP["cpu"])
"""Seconds of eager training from which compilation saves time."""


class Small(nn.Module):
    """Small model with the dropout of the forecaster."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.training:
            x = dropout(x, 0.5, draw_seed(x.device), 0)
        return self.second(x)


class Breaking(nn.Module):
    """Model that cannot be one graph, since its computation depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum().item() > 0 else x - 1


def decide(
    asked: str, seconds: float, previous: Regions | None = None, backend: str = "torch", device: torch.device = CPU
) -> Regions:
    return decide_compile(asked, backend, device, expected_steps=100, seconds_per_step=seconds / 100, previous=previous)


@pytest.mark.parametrize(
    ("asked", "seconds", "previous", "decision"),
    [
        ("off", 1e9, None, "none"),
        ("off", 1e9, "whole", "none"),
        ("on", 0.1, None, "operators"),
        ("on", 0.1, "none", "operators"),
        ("whole", 0.1, None, "whole"),
        ("auto", 0.9 * BREAK_EVEN, None, "none"),
        ("auto", 1.1 * BREAK_EVEN, None, "operators"),
        ("auto", 0.1, "operators", "operators"),
        ("auto", 0.1, "whole", "whole"),
        ("auto", 1e9, "none", "none"),
    ],
)
def test_decision_depends_on_setting_length_of_the_run_and_earlier_decision(
    asked: str, seconds: float, previous: Regions | None, decision: Regions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "why_not", lambda backend, device: None)
    assert decide(asked, seconds, previous) == decision


def test_whole_step_is_compiled_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "why_not", lambda backend, device: None)
    assert [decide(setting, 1e9, device=torch.device("cuda:0")) for setting in ("auto", "on", "whole")] == ["whole"] * 3


def test_auto_logs_why_compilation_is_impossible_and_on_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(compilation, "why_not", lambda backend, device: "there is no compiler: install one")
    assert decide("auto", 2 * BREAK_EVEN) == "none"
    assert [line for line in caplog.messages if "no compiler" in line] == [
        "compile auto: not compiled: there is no compiler: install one"
    ]
    with pytest.raises(BackendError, match=r"run\.compile is on, but there is no compiler: install one"):
        decide("on", 2 * BREAK_EVEN)


def test_short_run_does_not_check_for_a_compiler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(compilation, "why_not", lambda backend, device: pytest.fail("checked for a compiler"))
    assert decide("auto", 10.0) == "none"
    (line,) = caplog.messages
    assert line.startswith("compile auto: 100 steps take about 10 s, of which compiling would save 1 s and cost 30 s")
    assert line.endswith(": not compiled")


def test_reference_is_not_compiled() -> None:
    with pytest.raises(BackendError, match=r"reference cannot be compiled: use run\.backend=torch or auto"):
        decide("on", 1.0, backend="reference")
    assert decide("auto", 1e9, backend="reference") == "none"


def test_this_machine_can_compile() -> None:
    assert why_not("torch", CPU) is None


def test_missing_compiler_is_reported_with_a_remedy() -> None:
    with torch._inductor.config.patch("cpp.cxx", ("no-such-compiler",)):
        reason = why_not("torch", CPU)
    assert reason is not None
    assert "no C++ compiler is installed: install g++ (Debian: apt install g++)" in reason


def test_missing_triton_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    reason = why_not("torch", torch.device("cuda"))
    assert reason is not None
    assert "no working triton is installed" in reason


@pytest.mark.multiprocess
def test_compiler_without_headers_is_reported(tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\n'
        "echo 'x.cpp:1:10: fatal error: Python.h: No such file or directory' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    code = "import torch; from pgat_fast.model.compilation import why_not; print(why_not('torch', torch.device('cpu')))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "torch cannot compile a small function here" in result.stdout
    assert "fatal error: Python.h: No such file or directory" in result.stdout
    assert "run.compile=off" in result.stdout


@pytest.mark.parametrize("combiner", ["batched", "hierarchical"])
def test_expected_time_is_proportional_to_the_products(combiner: str) -> None:
    production = ["d_model=208", f"combiner={combiner}", "batch_size=1"]
    base = expected_batch_seconds(load_config(None, production), CPU)
    assert base == pytest.approx(STEP_SECONDS["cpu", combiner])
    assert expected_batch_seconds(load_config(None, [*production, "batch_size=3"]), CPU) == pytest.approx(3 * base)
    assert expected_batch_seconds(load_config(None, [*production, "d_model=104"]), CPU) == pytest.approx(base / 4)
    assert expected_batch_seconds(load_config(None, [*production, "seq_len=125"]), CPU) == pytest.approx(base / 2)
    assert expected_batch_seconds(load_config(None, production), torch.device("cuda:0")) < base


def test_expected_time_without_bodies_is_that_of_the_encoder() -> None:
    settings = ["d_model=208", "batch_size=1", "use_celestial_graph=false"]
    base = expected_batch_seconds(load_config(None, settings), CPU)
    # Counted: 26 times the FLOPs of the batched model with 118 inputs, a third of its FLOPs with 20.
    assert 5 < base / STEP_SECONDS["cpu", "batched"] < 50
    few_inputs = expected_batch_seconds(load_config(None, [*settings, "enc_in=20", "dec_in=20"]), CPU)
    assert 0.15 < few_inputs / STEP_SECONDS["cpu", "batched"] < 0.6
    assert expected_batch_seconds(load_config(None, [*settings, "combiner=hierarchical"]), CPU) == base


@pytest.mark.compile
def test_compiled_model_keeps_names_gradients_and_dropout() -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(16, 4)
    names, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]

    def step() -> list[Tensor]:
        torch.manual_seed(1)
        model.zero_grad()
        with products_in("highest", CPU):
            y = model(x)
        with float32_products_in("highest", CPU):
            y.square().sum().backward()
        return [y.detach(), *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]

    expected = step()
    assert not is_compiled(model)
    compile_in_place(model, CPU)
    assert is_compiled(model)
    for actual_tensor, expected_tensor in zip(step(), expected, strict=True):
        torch.testing.assert_close(actual_tensor, expected_tensor, rtol=1e-5, atol=1e-6)
    assert (list(model.state_dict()), [name for name, _ in model.named_modules()]) == (names, modules)

    torch._dynamo.utils.counters.clear()
    with eager(model):
        assert not is_compiled(model)
        model.eval()(x[:3])
    model.train()
    assert is_compiled(model)
    step()
    assert not torch._dynamo.utils.counters["stats"], "nothing was compiled anew"


def test_model_stays_compiled_after_an_error_within_eager() -> None:
    model = Breaking()
    compile_in_place(model, CPU)
    with pytest.raises(ZeroDivisionError), eager(model):
        raise ZeroDivisionError
    assert is_compiled(model)


def test_graph_break_raises() -> None:
    model = Breaking()
    compile_in_place(model, CPU)
    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        model(torch.ones(3))


@pytest.mark.compile
def test_number_of_compiled_models_is_not_limited_by_torch() -> None:
    for width in range(1, torch._dynamo.config.recompile_limit + 3):
        model = nn.Linear(width, 1)  # a library call, so no C++ is compiled
        compile_in_place(model, CPU)
        torch._dynamo.utils.counters.clear()
        with torch.no_grad():
            model(torch.ones(2, width))
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_cuda_graphs_are_used_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_options: dict[str, object] = {}
    model = Small()
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile_options.update(settings))
    compile_in_place(model, torch.device("cuda:0"))
    assert compile_options == {
        "fullgraph": True,
        "dynamic": False,
        "options": {"fallback_random": True, "triton.cudagraphs": True},
    }
