"""Failures of a run: NaN, lack of memory and a full disk are detected at once and reported, and nothing is lost."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from pgat_fast import build_model, load_config
from pgat_fast.errors import CheckpointError, MemoryLimitError, OutOfMemoryError, TrainingError
from pgat_fast.model.reference.pgat import PGAT
from pgat_fast.training.checkpoint import list_checkpoints, verify_checkpoint
from pgat_fast.training.failures import is_out_of_memory, memory_report
from pgat_fast.training.run_folder import read_status
from tests.pgat_fast.training.runs import assert_same, newest, outcome, run

ACCUMULATE = ["training.gradient_accumulation_steps=2"]


class Planted:
    """Forward hook that spoils the n-th forward pass in training mode, counted from 1, of any model."""

    def __init__(self, number: int, spoil: Any) -> None:
        self.number, self.spoil, self.seen = number, spoil, 0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(module, nn.GRU) or not isinstance(module, nn.Linear) or module.out_features != 4:
            return None  # only the head has four outputs
        if not module.training or not torch.is_grad_enabled():
            return None
        self.seen += 1
        return self.spoil(output) if self.seen == self.number else None


@pytest.fixture
def plant() -> Any:
    hooks = []

    def planting(number: int, spoil: Any) -> None:
        hooks.append(nn.modules.module.register_module_forward_hook(Planted(number, spoil)))

    yield planting
    for hook in hooks:
        hook.remove()


def with_nan(output: Tensor) -> Tensor:
    return output * float("nan")


def with_infinity(output: Tensor) -> Tensor:
    return output * 1e30


@pytest.mark.parametrize(("number", "spoil"), [(1, with_infinity), (4, with_nan), (8, with_nan), (8, with_infinity)])
def test_nonfinite_value_is_detected_in_same_step_and_weights_are_unchanged(
    tiny: list[str], tmp_path: Path, plant: Any, number: int, spoil: Any
) -> None:
    weights: list[list[Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])

    hook = register_optimizer_step_post_hook(keep)
    plant(number, spoil)
    # Five batches an epoch, in steps of two, two and one.
    epoch, step = {1: (1, 1), 4: (1, 2), 8: (2, 2)}[number]
    try:
        with pytest.raises(TrainingError, match=rf"epoch {epoch}, step {step}: the gradient is not finite"):
            run([*tiny, *ACCUMULATE], tmp_path / "run")
    finally:
        hook.remove()
    steps_taken = (epoch - 1) * 3 + step
    assert len(weights) == steps_taken, "found in the same step"
    if steps_taken > 1:
        assert all(torch.equal(a, b) for a, b in zip(weights[-1], weights[-2], strict=True)), "and not applied"
    checkpoint = newest(tmp_path / "run")
    assert checkpoint.about["step"] == steps_taken - 1
    names = [name for name, _ in build_model(load_config(None, tiny)).named_parameters()]
    for name, expected in zip(names, weights[-1], strict=True):
        assert torch.equal(checkpoint.weights[name], expected)
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("failed", 3)


def test_diagnosis_names_windows_days_and_first_module(tiny: list[str], tmp_path: Path) -> None:
    # The fault is in the model, so that it is still there when the step is computed again.
    original = PGAT.__init__

    def spoiled(self: PGAT, *args: Any) -> None:
        original(self, *args)
        self.readout.register_forward_hook(lambda module, _, output: output * float("inf") if module.training else None)

    PGAT.__init__ = spoiled
    try:
        with pytest.raises(TrainingError, match=r"diagnosis in .*nonfinite-step-00000001\.json"):
            run([*tiny, *ACCUMULATE], tmp_path / "run")
    finally:
        PGAT.__init__ = original
    report = json.loads((tmp_path / "run" / "nonfinite-step-00000001.json").read_bytes())
    assert [len(batch["windows"]) for batch in report["batches"]] == [4, 4]
    assert report["batches"][0]["first_module_not_finite"] == "readout"
    assert all(len(day) == 10 and day[4] == "-" for day in report["batches"][0]["origins"])
    assert report["gradients_not_finite"]["count"] > 0
    assert report["weights_not_finite"]["count"] == 0
    assert report["batches"][0]["inputs_not_finite"] == []


@pytest.mark.slow  # whole runs
def test_failed_run_resumes_exactly_after_fault_is_gone(tiny: list[str], tmp_path: Path, plant: Any) -> None:
    run([*tiny, *ACCUMULATE], tmp_path / "whole")
    plant(4, with_nan)
    with pytest.raises(TrainingError):
        run([*tiny, *ACCUMULATE], tmp_path / "run")
    run([*tiny, *ACCUMULATE], tmp_path / "run", resume=tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.slow  # whole runs
def test_allowed_nonfinite_steps_are_left_out_and_counted(tiny: list[str], tmp_path: Path, plant: Any) -> None:
    plant(4, with_nan)
    results = run([*tiny, *ACCUMULATE, "training.nonfinite_steps=1"], tmp_path / "run")
    assert [epoch["skipped_steps"] for epoch in results["epochs"]] == [1, 0]
    assert all(loss < 100 for loss in results["train_losses"])
    assert (tmp_path / "run" / "nonfinite-step-00000002.json").is_file()


def test_one_nonfinite_step_more_than_allowed_ends_run(tiny: list[str], tmp_path: Path, plant: Any) -> None:
    plant(4, with_nan)
    plant(8, with_nan)
    with pytest.raises(TrainingError, match="epoch 2, step 2"):
        run([*tiny, *ACCUMULATE, "training.nonfinite_steps=1"], tmp_path / "run")


def out_of_memory(_: Tensor) -> Tensor:
    return torch.empty(2**62, dtype=torch.uint8)  # raises a real error of torch


@pytest.mark.slow  # three runs each
@pytest.mark.parametrize("number", [1, 7])
def test_out_of_memory_is_reported_and_run_can_be_resumed(
    tiny: list[str], tmp_path: Path, plant: Any, number: int
) -> None:
    run(tiny, tmp_path / "whole")
    plant(number, out_of_memory)
    with pytest.raises(OutOfMemoryError, match=r"out of memory in train, .*Lower training\.batch_size from 4"):
        run(tiny, tmp_path / "run")
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 4, number - 1)
    (report,) = (tmp_path / "run").glob("out-of-memory-step-*.json")
    assert json.loads(report.read_bytes())["reading"]["process_gib"] > 0
    run(tiny, tmp_path / "run", resume=tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_only_out_of_memory_errors_are_recognised_as_such(error: Exception, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


def test_memory_report_does_not_need_count_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted() -> Any:
        raise MemoryError

    tensor = torch.zeros(3)  # a process that starts with this test has no other tensor
    assert memory_report(torch.device("cpu"), {}, "no memory")["tensors"] > 0
    del tensor
    monkeypatch.setattr("gc.get_objects", exhausted)
    assert memory_report(torch.device("cpu"), {}, "no memory")["tensors"] is None


@pytest.mark.multiprocess
def test_real_lack_of_memory_has_its_exit_code(tiny: list[str], tmp_path: Path) -> None:
    """Limit the process to 200 MB more than at its start, of which one tensor of the step needs nearly all.

    Uses the reference backend, whose tensors are large. The fast backend allocates in small pieces and may leave so
    little memory that the first allocation to fail is one of a few kilobytes inside oneDNN, which then reads a null
    pointer in the constructor of a descriptor (`dnnl::impl::matmul_pd_t`) and crashes the process. Callers cannot
    catch that.
    """
    large = ["model.seq_len=20", "model.d_model=208", "model.n_heads=16", "training.batch_size=6"]
    settings = [*tiny, *large, "run.backend=reference", f"run.output={tmp_path}", "run.name=run"]
    command = [sys.executable, "-c", LITTLE_MEMORY, *settings]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 4, result.stderr
    assert "error: out of memory in " in result.stderr
    assert list(tmp_path.glob("run*/out-of-memory-step-*.json"))
    assert "Traceback" not in result.stderr


LITTLE_MEMORY = """
import resource, sys
import torch
from pgat_fast.cli import main
import pgat_fast.training.run
torch.randn(64, 64) @ torch.randn(64, 64)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20, resource.RLIM_INFINITY))
sys.exit(main(["train", "--quiet", "--set", *sys.argv[1:]]))
"""


@pytest.mark.slow  # whole runs
def test_memory_limit_stops_run_with_checkpoint(tiny: list[str], tmp_path: Path) -> None:
    run(tiny, tmp_path / "whole")
    with pytest.raises(MemoryLimitError, match=r"run\.memory_limit_gb"):
        run([*tiny, "run.memory_limit_gb=0.01"], tmp_path / "run")
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", 5, 1)
    run(tiny, tmp_path / "run", resume=tmp_path / "run")
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a switch: while its value `is` is true, no file below a folder `checkpoints` can be written."""
    full = {"is": False}
    write = os.write

    def failing(descriptor: int, content: Any) -> int:
        if full["is"] and "/checkpoints/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", failing)
    return full


@pytest.mark.slow  # whole runs
def test_full_disk_is_logged_and_does_not_end_run(
    tiny: list[str], tmp_path: Path, full_disk: Any, plant: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full from the second epoch to the last step of the third, and every save in between fails."""

    def turn(on: bool) -> Any:
        def change(output: Tensor) -> Tensor:
            full_disk["is"] = on
            return output

        return change

    plant(6, turn(True))
    plant(15, turn(False))
    results = run([*tiny, "training.epochs=3", "training.lr_schedule=constant"], tmp_path / "run")
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert any("No space left on device" in message and "training continues" in message for message in errors)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(line["stage"] == "checkpoint" and "error" in line for line in lines)
    assert len(results["epochs"]) == 3
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        assert verify_checkpoint(path) == []
    assert results["best_epoch"] in (1, 3), "weights that could not be saved are not called the best"


def test_disk_full_from_start_ends_run_before_training(tiny: list[str], tmp_path: Path, full_disk: Any) -> None:
    full_disk["is"] = True
    with pytest.raises(CheckpointError, match=r"No space left on device"):
        run(tiny, tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "failed"


@pytest.mark.multiprocess
def test_real_file_size_limit_ends_run_with_message(tiny: list[str], tmp_path: Path) -> None:
    """Files of the process are limited to 200 kB, less than a checkpoint of the tiny model needs."""
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY)); "
    code += "from pgat_fast.cli import main; sys.exit(main(['train', '--quiet', '--set', *sys.argv[1:]]))"
    command = [sys.executable, "-c", code, *tiny, f"run.output={tmp_path}", "run.name=run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "cannot be written: File too large" in result.stderr
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert resource.RLIMIT_FSIZE is not None
