"""The choice of kernels for a run: kept, calibrated and listed ones, with a simulated GPU and made-up times."""

import json
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pgat_fast import load_config
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.model.kernel_choice import KernelChoice, described, kept_choice, listed_choice
from pgat_fast.training import calibration
from pgat_fast.training.calibration import Trial, calibrate, choose_kernels, kept_file, key_of, read_kept
from pgat_fast.training.compile_check import CompileCheck
from pgat_kernels.dispatch import Kernels
from pgat_kernels.tuning_table import Case, Entry, Threshold

CPU = torch.device("cpu")
SHORT = ["training.max_steps=10"]
SECONDS = {Kernels.OFF: 4.0, Kernels.LISTED: 2.0, Kernels.ON: 3.0}


class Gpu:
    """What a simulated GPU does: its line in the table, the seconds of a step, and faults of kernels."""

    def __init__(self) -> None:
        self.entry: Entry | None = Entry("a GPU", {}, {Case("aspects", 4, 128): Threshold(1, "modelled")})
        self.seconds = dict(SECONDS)
        self.faults: dict[Kernels, str] = {}
        self.out_of_memory: set[Kernels] = set()
        self.trials: list[Kernels] = []
        """Kernels of which a step was compared."""
        self.windows = 0
        """Windows of a batch of the last trial."""

    def measure(self, source: Any) -> None:
        """Let all lines of the table have this source."""
        self.entry = Entry("a GPU", {}, {Case("aspects", 4, 128): Threshold(1, source)})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """Simulate a GPU, on which kernels run, and an empty cache of the user."""
    simulated = Gpu()

    class SimulatedTrial:
        kernels = Kernels.OFF

        def use(self, kernels: Kernels) -> None:
            self.kernels = kernels

        def step_with(self, kernels: Kernels) -> None:
            self.kernels = kernels

        def shortage(self) -> str | None:
            return "a step runs out of memory" if self.kernels in simulated.out_of_memory else None

        def fault(self, check_stop: Any) -> str | None:
            simulated.trials.append(self.kernels)
            return simulated.faults.get(self.kernels) or self.shortage()

    @contextmanager
    def trial(config: Any, device: Any, precision: Any, kernels: Kernels, windows: int) -> Iterator[SimulatedTrial]:
        simulated.windows = windows
        made = SimulatedTrial()
        made.use(kernels)
        yield made

    def in_turns(steps: dict[Kernels, Any], seconds: float, *rest: Any) -> dict[Kernels, list[float]]:
        assert seconds == calibration.CALIBRATION_SECONDS
        return {kernels: [0.9 * simulated.seconds[kernels], simulated.seconds[kernels], 9.0] for kernels in steps}

    monkeypatch.setattr("pgat_fast.model.kernel_choice.why_not", lambda device: None)
    monkeypatch.setattr(calibration, "why_not", lambda device: None)
    monkeypatch.setattr("pgat_fast.model.kernel_choice.applying", lambda name: simulated.entry)
    monkeypatch.setattr(calibration, "listed", lambda name: simulated.entry)
    monkeypatch.setattr(calibration, "_trial", trial)
    monkeypatch.setattr(calibration, "seconds_in_turns", in_turns)
    monkeypatch.setattr(calibration, "expected_batch_seconds", lambda config, device: 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return simulated


def choice(*settings: str, windows: int = 16 * 421, **how: Any) -> KernelChoice:
    config = load_config(None, settings)
    return choose_kernels(config, CPU, "bf16", windows, **{"group": SingleProcess(), **how})


@pytest.mark.usefixtures("gpu")
def test_long_run_on_an_unknown_gpu_calibrates_itself_and_keeps_the_result(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    chosen = choice()
    assert chosen.kernels == Kernels.LISTED
    assert chosen.reason is not None
    for part in (
        "the listed kernels, by a calibration of", "without kernels 4e+03 ms", "with the listed ones 2e+03 ms",
        "with all 3e+03 ms", f"kept in {kept_file()}",
    ):  # fmt: skip
        assert part in chosen.reason
    assert "\n" not in chosen.reason
    (result,) = json.loads(kept_file().read_text()).values()
    assert result["kernels"] == described(Kernels.LISTED)


def test_kept_result_is_used_by_short_runs_too(gpu: Gpu) -> None:
    choice()
    gpu.trials.clear()
    gpu.seconds[Kernels.OFF] = 0.0
    for settings in ([], SHORT):
        assert choice(*settings).kernels == Kernels.LISTED
    assert not gpu.trials


def test_other_shape_dtype_or_version_has_a_result_of_its_own(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None)
    key = key_of(config, CPU, "bf16")
    others = [
        key_of(config, CPU, "highest"),
        *(
            key_of(load_config(None, [setting]), CPU, "bf16")
            for setting in (
                "training.batch_size=8",
                "model.seq_len=200",
                "run.recompute=off",
                "run.deterministic=false",
            )
        ),
    ]
    same = key_of(load_config(None, ["training.epochs=3", "run.name=other", "data.rows=100"]), CPU, "bf16")
    monkeypatch.setattr(calibration, "__version__", "0.0")
    others.append(key_of(config, CPU, "bf16"))
    assert same == key
    assert len({key, *others}) == 1 + len(others)


def test_short_run_uses_the_table_after_a_comparison(gpu: Gpu) -> None:
    chosen = choice(*SHORT)
    assert chosen.kernels == Kernels.LISTED
    assert chosen.reason == "the kernels that are listed as faster on a GPU (modelled)"
    assert gpu.trials == [Kernels.LISTED]
    assert not kept_file().exists()


def test_measured_table_needs_no_calibration(gpu: Gpu) -> None:
    gpu.measure("measured")
    assert choice().reason == "the kernels that are listed as faster on a GPU (measured)"
    assert not kept_file().exists()


def test_gpu_without_lines_is_calibrated_with_all_kernels(gpu: Gpu) -> None:
    gpu.entry = None
    chosen = choice(*SHORT)
    assert chosen.kernels == Kernels.OFF
    assert chosen.reason is not None
    assert "no kernels: nothing is known of them on default; `pgat-fast tune` finds out" in chosen.reason
    assert choice().kernels == Kernels.ON


def test_kernels_that_are_wrong_or_fail_are_not_used_and_the_log_says_why(gpu: Gpu) -> None:
    gpu.faults = {Kernels.LISTED: "they failed (OutOfResources)", Kernels.ON: "the gradient of a differs"}
    short = choice(*SHORT)
    assert (short.kernels, short.level) == (Kernels.OFF, logging.WARNING)
    assert short.reason == "no kernels: they failed (OutOfResources)"
    long = choice()
    assert (long.kernels, long.level) == (Kernels.OFF, logging.WARNING)
    assert long.reason is not None
    assert "with all: the gradient of a differs" in long.reason


def test_way_that_runs_out_of_memory_is_not_chosen(gpu: Gpu) -> None:
    gpu.out_of_memory = {Kernels.OFF}
    gpu.seconds[Kernels.OFF] = 0.1
    assert choice().kernels == Kernels.LISTED
    gpu.out_of_memory = set(SECONDS)
    chosen = calibrate(load_config(None, ["training.batch_size=8"]), CPU, "bf16")
    assert chosen.kernels == Kernels.OFF
    assert chosen.reason is not None
    assert "without kernels: a step runs out of memory" in chosen.reason


@pytest.mark.parametrize(
    ("began_with", "kernels"),
    [("none", Kernels.OFF), ("all", Kernels.ON), ("listed abc", Kernels.LISTED), ("measured abc", Kernels.LISTED)],
)
def test_resumed_run_keeps_its_choice(began_with: str, kernels: Kernels, gpu: Gpu) -> None:
    chosen = choice(resumed=began_with)
    assert chosen.kernels == kernels
    assert chosen.reason is not None
    assert chosen.reason.endswith("as when this run began")
    assert described(kernels).partition(" ")[0] == began_with.partition(" ")[0].replace("measured", "listed")


def test_several_ranks_use_the_table_and_agree_on_a_fault(gpu: Gpu) -> None:
    group = Ranks()
    assert choice(group=group).kernels == Kernels.LISTED
    assert gpu.windows == load_config(None).training.batch_size // 2, "the windows of one rank"
    group.other = Kernels.LISTED, "they failed (on another rank)"
    chosen = choice(group=group)
    assert chosen.kernels == Kernels.OFF
    assert chosen.reason == "no kernels: they failed (on another rank)"


def test_ranks_whose_gpus_differ_use_no_kernels_and_gather_equally_often(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Ranks()
    group.other = Kernels.OFF, None
    assert choice(group=group).reason == "no kernels: the GPUs of the ranks would use different ones"
    monkeypatch.setattr(calibration, "why_not", lambda device: KernelChoice(Kernels.OFF, "no kernels: no triton"))
    group.other = Kernels.LISTED, None
    assert choice(group=group).kernels == Kernels.OFF
    assert group.gathered == 2


class Ranks(SingleProcess):
    """Two ranks, of which the other one answers `other`."""

    lockstep, size = True, 2
    other: tuple[Kernels, str | None] = (Kernels.LISTED, None)
    gathered = 0

    def all_gather(self, value: Any) -> list[Any]:
        self.gathered += 1
        return [value, self.other]


def test_step_that_does_not_fit_is_freed_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain torch needs more memory: its tensors must be gone when the kernels are tried alone."""
    held: list[weakref.ref[torch.Tensor]] = []

    def runs_out(*args: Any, **named: Any) -> Any:
        activations = torch.zeros(4)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Step:
        def accumulate(self, batches: Any) -> None:
            assert held[0]() is None

    monkeypatch.setattr(calibration, "check_compiled_step", runs_out)
    trial = Trial.__new__(Trial)
    trial.model, trial._step = torch.nn.Linear(1, 1), Step()
    assert trial.fault(lambda: None) is None
    assert held


def test_kernels_are_not_used_where_nothing_could_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        calibration, "check_compiled_step", lambda *args, **named: CompileCheck("none", torch.ones(1), 0.0)
    )
    trial = Trial.__new__(Trial)
    trial._step = None
    assert "nothing can be compared" in str(trial.fault(lambda: None))


def test_damaged_entry_of_results_leaves_the_others(gpu: Gpu) -> None:
    choice()
    results = read_kept()
    huge = next(iter(results.values())) | {"step_seconds": {"none": 10**400}}
    kept_file().write_text(json.dumps(results | {"damaged": 3, "huge": huge}))
    assert read_kept() == results


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 3}', '{"a": {"kernels": "all"}}'])
def test_damaged_file_of_results_is_ignored_and_replaced(text: str, gpu: Gpu) -> None:
    kept_file().parent.mkdir(parents=True)
    kept_file().write_text(text)
    assert read_kept() == {}
    choice()
    assert len(read_kept()) == 1


def test_result_that_cannot_be_kept_is_still_used(
    gpu: Gpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choice().kernels == Kernels.LISTED
    assert "the calibration cannot be kept" in caplog.text


def test_nothing_is_chosen_nor_said_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    expected = KernelChoice(Kernels.OFF, None)
    assert choice() == listed_choice(CPU) == kept_choice("all", CPU) == expected
