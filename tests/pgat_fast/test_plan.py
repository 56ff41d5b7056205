"""Figures and warnings of a plan."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pgat_fast import build_model, compat, load_config
from pgat_fast.config import Config, config_to_dict
from pgat_fast.errors import BackendError, DataError
from pgat_fast.model import resolve_backend
from pgat_fast.plan import Plan, make_plan
from pgat_fast.plan.make import count_parameters, count_work
from pgat_fast.plan.text import as_text, in_bytes, in_flops
from pgat_fast.plan.trace import Flops, Memory, trace_flops, trace_memory
from pgat_fast.training.checkpoint import Checkpoint, save_checkpoint
from pgat_fast.training.optimizer_step import make_optimizer
from pgat_fast.training.rng import generator_states


def config_with(tiny: list[str], *changes: str) -> Config:
    return load_config("configs/production_batched.yaml", [*tiny, *changes])


@pytest.fixture
def quick_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the counts by quick ones: 100 MiB a window, large tensors only."""

    def memory(config: Config, batch: int, *how: object) -> Memory:
        size = 100 * 2**20 * batch
        return Memory(batch, kept=size // 2, peak=size, peak_small=0, peak_large=size)

    monkeypatch.setattr("pgat_fast.plan.make.trace_memory", memory)
    monkeypatch.setattr(
        "pgat_fast.plan.make.trace_flops", lambda config, batch, backend: Flops(100 * batch, 350 * batch)
    )


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the search for the largest batch, which counts a step for each batch size it tries."""
    monkeypatch.setattr("pgat_fast.plan.make.largest_batch", lambda *how: None)


@pytest.fixture(scope="module")
def tiny_plan(tiny_settings: list[str]) -> Plan:
    """Return a real plan."""
    return make_plan(config_with(tiny_settings, "training.gradient_accumulation_steps=2"))


def test_parameters_of_both_layouts_are_counted(tiny: list[str]) -> None:
    config = config_with(tiny)
    parameters, tensors = count_parameters(config)
    our_parameters = dict(build_model(config).named_parameters())
    assert parameters.count == sum(parameter.numel() for parameter in our_parameters.values())
    assert tensors == len(our_parameters)
    original = compat.Model(config_to_dict(config)["model"])
    assert parameters.original_count == sum(parameter.numel() for parameter in original.parameters())
    assert parameters.trainable_bytes == parameters.gradient_bytes == 4 * parameters.count
    assert parameters.optimizer_bytes == 8 * parameters.count


@pytest.mark.parametrize(
    ("changes", "batches", "steps_per_epoch", "steps"),
    [
        (["training.gradient_accumulation_steps=1"], 5, 5, 10),
        (["training.gradient_accumulation_steps=2"], 5, 3, 6),
        (["training.gradient_accumulation_steps=2", "training.max_steps=4"], 5, 3, 4),
        (["training.batch_size=6", "training.gradient_accumulation_steps=4"], 3, 1, 2),
    ],
)
def test_windows_batches_and_steps_are_counted(
    tiny: list[str], changes: list[str], batches: int, steps_per_epoch: int, steps: int
) -> None:
    work = count_work(config_with(tiny, *changes))
    assert work is not None
    assert (work.train_windows, work.validation_windows, work.test_windows) == (20, 5, 6)
    assert (work.batches_per_epoch, work.steps_per_epoch, work.steps) == (batches, steps_per_epoch, steps)


def test_flops_of_steps_and_run_add_up(tiny_plan: Plan) -> None:
    flops = tiny_plan.computation
    assert flops.micro_batch > 3 * flops.forward > 0
    assert flops.optimizer_step == 2 * flops.micro_batch
    assert flops.run == 2 * 5 * flops.micro_batch


@pytest.mark.usefixtures("quick_traces")
def test_checkpoint_size_is_near_prediction(tiny: list[str], tmp_path: Path) -> None:
    config = config_with(tiny, "run.keep_checkpoints=5")
    model = build_model(config)
    optimizer = make_optimizer(model, config.training)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    training = {"optimizer": optimizer.state_dict(), "generators": generator_states()}
    metadata = {"config": config_to_dict(config)}
    path = save_checkpoint(tmp_path, "step-00000001", Checkpoint(dict(model.state_dict()), training, metadata))
    written = sum(file.stat().st_size for file in path.iterdir())
    disk = make_plan(config).disk
    # The prediction includes the columns and dates that a real run records.
    assert written == pytest.approx(disk.checkpoint, rel=0.03)
    assert disk.kept == 7 * disk.checkpoint


@pytest.mark.usefixtures("quick_traces")
def test_missing_data_file_causes_a_warning(tiny: list[str]) -> None:
    plan = make_plan(config_with(tiny, "data.path=nowhere.csv"))
    assert plan.work is None
    assert plan.computation.run is None
    assert plan.computation.optimizer_step > 0
    assert any("nowhere.csv does not exist" in warning for warning in plan.warnings)
    assert "nowhere.csv" in as_text(plan)


def test_batch_larger_than_the_windows_is_rejected(tiny: list[str]) -> None:
    with pytest.raises(DataError, match=r"lower training\.batch_size to 20"):
        make_plan(config_with(tiny, "training.batch_size=21"))


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.usefixtures("quick_traces")
def test_memory_warning_names_the_largest_batch(tiny: list[str]) -> None:
    room = make_plan(config_with(tiny, "training.batch_size=4"))
    assert not room.warnings
    assert room.memory.largest_batch is not None
    assert (room.memory.largest_batch.batch, room.memory.largest_batch.capped) == (20, True)
    assert room.memory.process is not None
    limit = room.memory.process / 2**30 + 0.15

    tight = make_plan(config_with(tiny, "training.batch_size=16", f"run.memory_limit_gb={limit}"))
    (warning,) = tight.warnings
    assert "will not fit into run.memory_limit_gb" in warning
    assert "lower training.batch_size from 16 to 5 or less" in warning
    assert tight.memory.largest_batch is not None
    assert tight.memory.largest_batch.batch == 5

    close = make_plan(config_with(tiny, "training.batch_size=5", f"run.memory_limit_gb={limit}"))
    assert "come close to run.memory_limit_gb" in close.warnings[0]
    assert "leave more room" in close.warnings[0]

    hopeless = make_plan(config_with(tiny, "run.memory_limit_gb=0.1"))
    assert "not even a batch of 1 fits" in hopeless.warnings[0]
    assert "none: one window needs" in as_text(hopeless)


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.usefixtures("quick_traces")
def test_absent_gpu_is_planned_for(tiny: list[str]) -> None:
    settings = ["run.device=cuda:99", "run.precision=auto"]
    plan = make_plan(config_with(tiny, *settings, "run.device_memory_limit_gb=0.001"))
    assert (plan.device, plan.device_present, plan.precision) == ("cuda:99", False, "bfloat16")
    assert plan.memory.process is None
    assert [limit.name for limit in plan.memory.limits] == ["run.device_memory_limit_gb"]
    assert plan.memory.limits[0].predicted == plan.memory.tensors
    assert any("cuda:99 is not on this machine" in warning for warning in plan.warnings)
    unlimited = make_plan(config_with(tiny, *settings))
    assert (unlimited.memory.limits, unlimited.memory.largest_batch) == ((), None)


def test_unavailable_backend_is_rejected(tiny: list[str]) -> None:
    with pytest.raises(BackendError, match="'triton' cannot run here: Triton kernels run on GPUs"):
        make_plan(config_with(tiny), backend="triton")


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.usefixtures("no_search")
def test_plan_depends_on_the_backend(tiny_plan: Plan, tiny: list[str]) -> None:
    config = config_with(tiny, "run.backend=reference", "run.recompute=on")
    reference, fast = make_plan(config), make_plan(config, backend="torch")
    assert (reference.backend, fast.backend) == ("reference", "torch")
    assert tiny_plan.backend == resolve_backend("auto")
    assert fast.parameters == reference.parameters
    assert 0 < fast.computation.forward < reference.computation.forward
    assert 0 < fast.computation.micro_batch < reference.computation.micro_batch
    assert 0 < fast.memory.kept < reference.memory.kept


@pytest.mark.slow  # steps are traced, operator by operator
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_counting_draws_no_random_numbers(backend: str, tiny: list[str]) -> None:
    config, before = config_with(tiny), torch.get_rng_state()
    count_parameters(config)
    trace_flops(config, 2, backend)
    trace_memory(config, 2, backend=backend)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow  # models of production sizes, operator by operator
def test_production_plan_takes_less_than_a_minute() -> None:
    """Plan with the reference, which counts a step for each batch size that the search tries; `torch` counts two."""
    config = load_config("configs/celestial_enhanced_pgat_production.yaml", ["data.path=nowhere.csv"])
    started = time.process_time()  # of this process, independent of other work on the machine
    plan = make_plan(config, "reference")
    assert time.process_time() - started < 60  # 15 to 20 on an idle processor, twice that on a busy one
    assert (plan.parameters.count, plan.parameters.original_count) == (9_160_002, 12_310_600)


def test_plan_formats_as_json_and_text(tiny_plan: Plan) -> None:
    plan = tiny_plan
    assert json.loads(json.dumps(asdict(plan), allow_nan=False))["memory"]["kept"] == plan.memory.kept
    text = as_text(plan)
    for title in ("run", "parameters", "work", "computation", "memory", "disk", "planned in"):
        assert f"\n{title}" in f"\n{text}"
    assert f"{plan.parameters.count:,}" in text
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (1023 * 2**20, "0.999 GiB"), (5 * 2**50, "5,120 TiB")],
)
def test_bytes_are_shown_with_three_digits(count: int, shown: str) -> None:
    assert in_bytes(count) == shown


@pytest.mark.parametrize(("count", "shown"), [(0, "0 FLOP"), (355.17e9, "355 GFLOP"), (2.13e18, "2.13 EFLOP")])
def test_flops_are_shown_with_three_digits(count: float, shown: str) -> None:
    assert in_flops(count) == shown
