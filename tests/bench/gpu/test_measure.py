"""Tests of the sections of `bench.gpu.measure` that need no kernels, on the CPU, and of its monitored processes."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from bench.gpu.measure import compiled_against_eager, in_processes, in_this_process

CPU = torch.device("cpu")


@pytest.mark.compile  # graphs of a whole model
def test_model_with_kernels_requested_compiles_to_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile as on a GPU, for which torch generates other code; here the operators run in plain torch."""

    def compile_in_place(model: nn.Module, device: torch.device) -> None:
        model.compile(fullgraph=True, dynamic=False, backend="aot_eager")

    monkeypatch.setattr("pgat_fast.model.compilation.compile_in_place", compile_in_place)
    small = {
        "seq_len": 6, "label_len": 3, "pred_len": 2, "d_model": 13, "n_heads": 1, "fusion_layers": 1, "d_layers": 1,
    }  # fmt: skip
    assert compiled_against_eager(CPU, "batched", **small)["ok"]


CHILD = """
import json, os, signal, sys, time
first, file = int(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
for i in range(first, 6):
    if i == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if i == 3:
        time.sleep(60)
    file.write(json.dumps([i, {"ok": True} if i != 4 else {"ok": False, "lost": True}]) + "\\n")
    if i == 4:
        os.abort()
"""


def command(first: int, file: Path, seconds: float) -> list[str]:
    return [sys.executable, "-c", CHILD, str(first), str(file)]


@pytest.mark.multiprocess
def test_crash_hang_and_lost_gpu_end_only_one_item() -> None:
    outcomes = list(in_processes(command, 6, time.monotonic() + 100, limit=2))
    assert outcomes == [
        (0, {"ok": True}),
        (1, {"ok": False, "error": "its process ended with -11"}),
        (2, {"ok": True}),
        (3, {"ok": False, "error": "it was not done after 2 s"}),
        (4, {"ok": False, "lost": True}),
        (5, {"ok": True}),
    ]


def test_items_after_deadline_are_not_run() -> None:
    assert list(in_processes(command, 2, time.monotonic())) == [(0, None), (1, None)]


def test_persistent_gpu_error_ends_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detect it whatever the exception: triton raises one of its own."""

    def fail(name: str) -> dict[str, bool]:
        if name == "broken":
            monkeypatch.setattr("bench.gpu.measure.synchronize", lambda device: fail("lost"))
        raise RuntimeError(name)

    items = [("parity", name, lambda n=name: fail(n)) for name in ("harmless", "broken", "never begun")]
    outcomes = dict(in_this_process(items, 0, time.monotonic() + 100, CPU))
    assert {i: "lost" in (record or {}) for i, record in outcomes.items()} == {0: False, 1: True}
    assert outcomes[1] is not None
    assert outcomes[1]["error"] == "RuntimeError: broken"


def test_process_is_killed_when_its_records_are_no_longer_read(tmp_path: Path) -> None:
    code = "import pathlib, os, time; pathlib.Path({!r}).write_text(str(os.getpid())); time.sleep(60)"
    pid = tmp_path / "pid"
    outcomes = in_processes(
        lambda first, file, seconds: [sys.executable, "-c", code.format(str(pid))], 1, time.monotonic() + 9, limit=1
    )
    assert next(outcomes) == (0, {"ok": False, "error": "it was not done after 1 s"})
    assert not psutil.pid_exists(int(pid.read_text()))


WITHOUT_DEPENDENCIES = """
import sys
for name in ("numpy", "pandas", "psutil", "pydantic", "pytest_benchmark", "safetensors", "tqdm", "yaml"):
    sys.modules[name] = None
import bench.gpu.tune
from bench.gpu import headline, measure
model = {
    "seq_len": 2, "label_len": 1, "pred_len": 1, "d_model": 13, "n_heads": 1, "fusion_layers": 1, "d_layers": 1,
}
task = {"combiner": "batched", "compiled": "eager", "device": "cpu", "batch": 1, "steps": 1, "model": model}
for backend in ("reference", "torch"):
    headline.measure(task | {"backend": backend})
sys.exit(measure.main(["--device", "cpu", "--seconds", "0"]))
"""


@pytest.mark.multiprocess
def test_torch_and_triton_are_enough() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_DEPENDENCIES], check=True)


def test_item_that_has_begun_is_ended_after_the_deadline() -> None:
    code = "import time; time.sleep(60)"
    started = time.monotonic()
    outcomes = list(
        in_processes(lambda first, file, seconds: [sys.executable, "-c", code], 2, started + 1, limit=50, grace=1)
    )
    assert outcomes == [(0, {"ok": False, "error": "it was not done after 2 s"}), (1, None)]
    assert time.monotonic() - started < 10
