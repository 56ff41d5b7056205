"""Tests of `bench.backend_spec`: parsing, errors that list the valid words, and the resulting settings and models."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.backend_spec import (
    BackendSpec,
    configure,
    parse_spec,
    parse_specs,
    use_fused_attention,
)
from bench.step import count_step
from pgat_fast.errors import BackendError, ConfigError

CONFIG = "configs/quickstart.yaml"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("reference", BackendSpec("reference")),
        ("torch:bf16", BackendSpec("torch", "bf16")),
        ("torch:high:eager", BackendSpec("torch", "high", compiled=False)),
        ("reference:compiled:fused", BackendSpec("reference", compiled=True, fused=True)),
        ("reference:kept", BackendSpec("reference", kept=True)),
        ("torch:compiled:kept", BackendSpec("torch", compiled=True, kept=True)),
        ("reference:heap", BackendSpec("reference", heap=True)),
    ],
)
def test_spec_round_trips_through_text(text: str, spec: BackendSpec) -> None:
    assert parse_spec(text) == spec
    assert parse_spec(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensorflow", "'tensorflow' is not a backend; choose one of reference, torch, triton"),
        ("auto", "'auto' is not a backend"),
        ("", "'' is not a backend"),
        (
            "torch:fast",
            "'fast' cannot follow torch; use highest, high, bf16, fp16, compiled, whole, eager, kept",
        ),
        ("torch:fused", "'fused' cannot follow torch"),
        (
            "reference:",
            "'' cannot follow reference; use highest, high, bf16, fp16, compiled, eager, kept, fused, heap",
        ),
        ("torch:compiled:eager", "only one of compiled, whole, eager can be given"),
        ("torch:bf16:high", "only one of highest, high, bf16, fp16 can be given"),
        ("reference:fused:fused", "only one of fused can be given"),
        ("torch,torch:bf16,torch", "names a backend twice"),
    ],
)
def test_invalid_spec_lists_valid_words(text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="^" + repr(text)[:1]) as error:
        parse_specs(text)
    assert message in str(error.value)


def test_spec_becomes_run_settings() -> None:
    run = configure(parse_spec("reference:bf16:compiled"), CONFIG, ["run.precision=high"]).run
    assert (run.backend, run.precision, run.compile) == ("reference", "bf16", "off")
    assert configure(parse_spec("reference"), CONFIG, ["run.precision=high"]).run.precision == "high"
    assert "run.compile=on" in parse_spec("torch:compiled").overrides()
    assert configure(parse_spec("torch:kept"), CONFIG, ["run.recompute=on"]).run.recompute == "off"
    assert "run.compile=off" in parse_spec("torch:eager").overrides()
    assert not any("compile" in override for override in parse_spec("torch").overrides())


def test_unavailable_backend_and_unknown_setting_raise() -> None:
    with pytest.raises(BackendError, match="triton"):
        configure(parse_spec("triton"), CONFIG, [])
    with pytest.raises(ConfigError, match="d_modle"):
        configure(parse_spec("reference"), CONFIG, ["model.d_modle=3"])


def test_fused_attention_returns_no_weights_and_same_output() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            output: tuple[torch.Tensor, torch.Tensor | None] = self.attention(x, x, x)
            return output

    block, x = Block(), torch.randn(3, 5, 8)
    before, weights = block(x)
    use_fused_attention(block)
    after, no_weights = block(x)
    assert weights is not None
    assert no_weights is None
    torch.testing.assert_close(after, before)


COMPILES = """
import torch
from torch import nn
from bench.backend_spec import BackendSpec, compile_module


class Model(nn.Module):
    def forward(self, x):
        return x.sin() + x.cos()


module = Model()
compile_module(module, BackendSpec("reference", compiled=True), torch.device("cpu"))
module(torch.ones(500, 20))
"""


@pytest.mark.compile
def test_failed_compilation_raises_instead_of_running_eagerly(tmp_path: Path) -> None:
    environment = {"CXX": str(tmp_path / "no_compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = subprocess.run(
        [sys.executable, "-c", COMPILES], capture_output=True, text=True, check=False, env=os.environ | environment
    )
    assert result.returncode == 1
    assert "InvalidCxxCompiler" in result.stderr


@pytest.mark.slow  # every product is counted in Python
def test_reference_that_keeps_has_fewer_flops_and_saves_more() -> None:
    counted = {}
    for spec in (BackendSpec("reference"), BackendSpec("reference", kept=True)):
        config = configure(spec, CONFIG, ["model.seq_len=4", "model.label_len=2"])
        counted[spec.kept] = count_step(config, spec, 1)
    assert counted[True]["forward_flops"] == counted[False]["forward_flops"]
    assert counted[True]["flops"] < counted[False]["flops"]
    assert counted[True]["saved_for_backward_bytes"] > counted[False]["saved_for_backward_bytes"]
