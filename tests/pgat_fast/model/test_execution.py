"""Execution options from the section `run`."""

import logging
import sys

import pytest
import torch

from pgat_fast import build_model, load_config
from pgat_fast.model.execution import Execution, bytes_to_keep
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.utils.system import GIB
from pgat_kernels.dispatch import Kernels
from pgat_kernels.tuning_table import Case, Entry, Threshold


@pytest.mark.parametrize(
    ("settings", "execution"),
    [
        ([], Execution()),
        (["run.recompute=off"], Execution(keep=sys.maxsize)),
        (["run.combiner_chunk=off"], Execution(combiner_chunk=None)),
        (["run.combiner_chunk=7"], Execution(combiner_chunk=7)),
        (["run.exact_dropout=true"], Execution(exact_dropout=True)),
        (["run.deterministic=false"], Execution(deterministic=False)),
        (["run.compile=on"], Execution(compiled=False)),  # not decided by the setting alone
    ],
)
def test_options_follow_the_settings(settings: list[str], execution: Execution) -> None:
    run = load_config({"recompute": "on"}, settings).run
    assert Execution.of(run) == execution
    assert Execution.of(run, compiled=True).compiled


@pytest.mark.parametrize(
    ("settings", "free", "keep"),
    [
        ({}, 8 * GIB, GIB),
        ({"device": "cpu"}, 8 * GIB, GIB),
        ({"device": "cuda"}, 8 * GIB, 0),
        ({"recompute": "on"}, 8 * GIB, 0),
        ({"recompute": "off"}, 0, sys.maxsize),
        ({}, 0, 0),
    ],
)
def test_operators_keep_a_quarter_of_the_free_memory_on_a_cpu(
    settings: dict[str, str], free: int, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []
    monkeypatch.setattr("pgat_fast.model.execution.resolve_device", lambda device: torch.device("cpu"))
    monkeypatch.setattr("pgat_fast.model.execution.free_memory", lambda limit: limits.append(limit) or free)
    monkeypatch.setattr("pgat_fast.model.execution.usable_cores", torch.get_num_threads)
    assert bytes_to_keep(load_config({"memory_limit_gb": 3} | settings).run) == keep
    assert set(limits) <= {3}


@pytest.mark.parametrize(("ranks", "threads", "keep"), [(1, 8, GIB), (2, 8, GIB / 2), (1, 2, GIB / 4), (2, 1, GIB / 8)])
def test_free_memory_is_divided_among_processes(
    ranks: int, threads: int, keep: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgat_fast.model.execution.free_memory", lambda limit: 8 * GIB)
    monkeypatch.setattr("pgat_fast.model.execution.usable_cores", lambda: 8)
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert bytes_to_keep(load_config({"device": "cpu"}).run) == keep


@pytest.mark.parametrize(
    ("asked", "listed", "kernels", "message"),
    [
        ("auto", True, Kernels.LISTED, "backend auto: the kernels that are listed as faster on a GPU (modelled)"),
        ("auto", False, Kernels.OFF, "backend auto: no kernels: nothing is known of them on sm_90"),
        ("torch", True, Kernels.OFF, "backend torch"),
        ("triton", False, Kernels.ON, "backend triton"),
    ],
)
def test_auto_uses_listed_kernels_on_a_gpu(
    asked: str,
    listed: bool,
    kernels: Kernels,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr("pgat_fast.utils.device.resolve_device", lambda device: cuda)
    monkeypatch.setattr("pgat_fast.model.backend_reasons", lambda: {"torch": None, "triton": None})
    monkeypatch.setattr("pgat_fast.model.kernel_choice.gpu_of", lambda device: "sm_90")
    monkeypatch.setattr(
        "pgat_fast.model.kernel_choice.applying",
        lambda gpu: Entry("a GPU", {}, {Case("aspects", 4, 128): Threshold(1, "modelled")}) if listed else None,
    )
    model = build_model(load_config(None, ["model.d_model=13", "model.n_heads=1"]), asked)
    assert isinstance(model, FastPGAT)
    assert model.execution.kernels is kernels
    assert message in caplog.text
