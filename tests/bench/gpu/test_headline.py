"""Tests of the first figures on a new machine, on the CPU with small models, and of what they need to run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import headline
from bench.gpu.headline import FIRST, LATER, Way, measure, time_of
from bench.gpu.measure import GRACE, ITEM_SECONDS, MOST_SECONDS
from bench.gpu.production import CONFIGS, FILE, build, settings_of
from pgat_fast import build_model, load_config
from pgat_fast.config.schema import ModelConfig
from pgat_kernels.tuning_table import FILE as TABLE
from pgat_kernels.tuning_table import read

CPU = torch.device("cpu")
TINY = {
    "seq_len": 2, "label_len": 1, "pred_len": 1, "d_model": 13, "n_heads": 1, "fusion_layers": 1,
    "celestial_fusion_layers": 1, "d_layers": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_are_those_of_the_configurations(name: str) -> None:
    config = load_config(CONFIGS[name])
    sections = {section: getattr(config, section).model_dump(mode="json") for section in ("model", "training")}
    assert json.loads(FILE.read_text())[name] == sections
    model, training = settings_of(name)
    assert (model.embed_dim, model.nodes) == (config.model.embed_dim, config.model.nodes)
    assert training.batch_size == config.training.batch_size
    changed, _ = settings_of(name, d_model=13, n_heads=1, use_celestial_graph=False)
    sizes = config.model.model_dump() | {"d_model": 13, "n_heads": 1, "use_celestial_graph": False}
    assert changed.embed_dim == ModelConfig(**sizes).embed_dim


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_model_is_that_of_the_configuration(backend: str) -> None:
    model, _ = settings_of("batched", **TINY)
    config = load_config(CONFIGS["batched"], [f"model.{name}={value}" for name, value in TINY.items()])
    expected = {name: x.shape for name, x in build_model(config, backend).named_parameters()}
    assert {name: x.shape for name, x in build(backend, model).named_parameters()} == expected


@pytest.mark.parametrize(("backend", "compiled"), [("reference", "eager"), ("torch", "eager")])
def test_step_gives_time_and_memory(backend: str, compiled: str) -> None:
    task = {**Way("batched", backend, compiled, 60)._asdict(), "device": "cpu", "batch": 1, "steps": 2, "model": TINY}
    record = measure(task)
    assert record["step_seconds"] > 0 < record["graph_step_seconds"]
    assert 0.05 < record["peak_memory_gib"] < 16
    assert record["precision"] == "highest"


def test_headline_takes_three_minutes_and_everything_eight() -> None:
    assert sum(way.limit for way in FIRST) <= 180
    assert all(way.limit < ITEM_SECONDS for way in (*FIRST, *LATER))
    assert MOST_SECONDS + GRACE < 480
    ways = {(way.combiner, way.backend, way.compiled) for way in (*FIRST, *LATER)}
    left_out = {("reference", "graphs"), ("torch", "compiled"), ("triton", "compiled")}
    every = {
        (combiner, backend, compiled)
        for combiner in ("batched", "hierarchical")
        for backend in ("reference", "torch", "triton")
        for compiled in ("eager", "compiled", "graphs")
    }
    assert every - ways == {("hierarchical", *way) for way in left_out}


def test_epoch_and_model_stand_beside_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"step_seconds": 0.5, "graph_step_seconds": 0.25, "gpu": "NVIDIA H100 80GB HBM3"}
    limits: list[float] = []

    def run_task(module: str, task: Any, limit: float, environment: Any) -> dict[str, Any]:
        limits.append(limit)
        return dict(figures)

    monkeypatch.setattr(headline, "run_task", run_task)
    cuda = torch.device("cuda")
    record = time_of(Way("batched", "triton", "eager", 50), cuda, {}, 30)
    assert limits == [30]
    assert record["epoch_seconds"] == 421 * 0.25
    assert 0.001 < record["modelled_step_seconds"] < 1
    assert record["target"]["epoch_seconds"] == 8.5
    assert time_of(Way("batched", "reference", "eager", 50), cuda, {}, 60)["modelled_step_seconds"] is None
    assert limits[-1] == 50


@pytest.mark.multiprocess
def test_process_without_result_is_an_error() -> None:
    record = time_of(Way("none", "torch", "eager", 60), CPU, {}, 60)
    assert not record["ok"]
    assert "KeyError" in record["error"]


WITHOUT_PACKAGES = """
import sys
for name in ("pandas", "psutil", "pydantic", "pydantic_core", "safetensors", "tqdm", "yaml", "jinja2", "matplotlib"):
    sys.modules[name] = None
"""


@pytest.mark.slow  # steps with interpreted kernels
@pytest.mark.multiprocess
def test_headline_runs_with_torch_and_triton_alone(tmp_path: Path) -> None:
    """Rehearse `make gpu` on a bare machine, with interpreted kernels, as processes without any other package.

    The interpreter needs numpy; kernels on a GPU do not.
    """
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(WITHOUT_PACKAGES)
    sizes = json.dumps({"batch": 1, "steps": 1, "warm_up": 0, "model": TINY})
    command = [sys.executable, "-m", "bench.gpu.measure", "--device", "cpu", "--sections", "steps"]
    command += ["--only", "batched, triton, eager", "--sizes", sizes, "--out", str(tmp_path / "gpu")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(blocked), os.environ.get("PYTHONPATH", ""), ".", "kernels"]),
        "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    subprocess.run(command, check=True, env=environment)
    records = json.loads((tmp_path / "gpu.json").read_text())["records"]
    ((section, name, record),) = records
    assert (section, name) == ("steps", "batched, triton, eager")
    assert record["epoch_seconds"] > 0
    assert "step_seconds" in (tmp_path / "gpu.md").read_text()


TUNE = """
import sys, torch
from pathlib import Path
from bench.gpu import tune
from tests.interpreter.small_cases import SMALL_CASES
tune.CASES = [case._replace(dtypes=("fp32",)) for case in SMALL_CASES if case.operator == "edge_head"]
tune.VALUES = {"block": (16, 32), "warps": (4,), "columns": (), "stages": (1,)}
tune.LADDER = (1,)
tune.tune(torch.device("cpu"), Path(sys.argv[1]), 1, 1000, compiling=False)
"""


@pytest.mark.multiprocess
def test_tuner_runs_with_torch_and_triton_alone(tmp_path: Path) -> None:
    """Rehearse `make tune` on a bare machine, with interpreted kernels."""
    out = tmp_path / "table.json"
    code = WITHOUT_PACKAGES + TUNE
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(out)], check=True, env=environment)
    entry = read(out)["default"]
    assert {case.kernel for case in entry.configurations} == {"edge_head forward", "edge_head backward"}
    assert {threshold.source for threshold in entry.thresholds.values()} == {"measured"}
    assert read(out).keys() == {"default", *read(TABLE)}, "the shipped lines of other GPUs stay"
