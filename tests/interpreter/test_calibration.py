"""The choice of kernels with `backend: auto`, by steps with interpreted kernels, which stand for those of a GPU."""

import logging
from pathlib import Path

import pytest
import torch

from bench.gpu.tune import run_launch
from pgat_fast import load_config
from pgat_fast.config import Config
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.model.kernel_choice import described
from pgat_fast.training import calibration
from pgat_fast.training.calibration import calibrate, choose_kernels, read_kept
from pgat_fast.training.run import train
from pgat_kernels import dispatch
from pgat_kernels.dispatch import Kernels
from pgat_kernels.instrumentation import Launch, intercept_launches, record_compiled
from pgat_kernels.tuning_table import Case, Entry, Threshold
from tests.interpreter.test_model import operators_of

pytestmark = pytest.mark.usefixtures("large_tiles")

CPU = torch.device("cpu")
HEAD = Case("edge_head", 4, 256)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use an empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """List one operator for the interpreter."""
    entry = Entry("the interpreter", {}, {HEAD: Threshold(1, "modelled")})
    monkeypatch.setattr(dispatch, "applying", {"default": entry}.get)
    monkeypatch.setattr("pgat_fast.model.kernel_choice.applying", {"default": entry}.get)
    monkeypatch.setattr(calibration, "listed", {"default": entry}.get)


def tiny_config(tiny: tuple[str, ...], *settings: str) -> Config:
    batch = "training.batch_size=1"
    return load_config("configs/quickstart.yaml", [*tiny, "model.combiner=batched", batch, *settings])


@pytest.mark.usefixtures("listed")
def test_step_with_listed_kernels_is_compared_with_plain_torch(tiny: tuple[str, ...]) -> None:
    config, state = tiny_config(tiny, "training.max_steps=1"), torch.get_rng_state()
    with record_compiled() as kernels:
        choice = choose_kernels(config, CPU, "highest", 100, group=SingleProcess())
    assert choice.kernels == Kernels.LISTED
    assert operators_of(kernels) == {"edge_head"}
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(
    ("fails", "reason"), [(True, "they failed (RuntimeError: out of"), (False, "with them the gra")]
)
def test_wrong_and_failing_kernels_are_not_used(fails: bool, reason: str, tiny: tuple[str, ...]) -> None:
    def execute(launch: Launch) -> None:
        if fails:
            raise RuntimeError("out of resource: shared memory")
        if launch.kernel.__name__ != "_edge_head_bwd_kernel":  # whose results then are arbitrary
            run_launch(launch)

    config = tiny_config(tiny, "training.max_steps=1")
    with intercept_launches(execute):
        choice = choose_kernels(config, CPU, "highest", 100, group=SingleProcess())
    assert (choice.kernels, choice.level) == (Kernels.OFF, logging.WARNING)
    assert choice.reason is not None
    assert choice.reason.startswith(f"no kernels: {reason}")


@pytest.mark.slow  # steps with interpreted kernels
@pytest.mark.usefixtures("listed")
def test_calibration_takes_steps_of_every_choice_and_keeps_the_fastest(tiny: tuple[str, ...]) -> None:
    """On a CPU plain torch is faster than interpreted kernels by far."""
    choice = calibrate(tiny_config(tiny), CPU, "highest", 0.0)
    assert choice.kernels == Kernels.OFF
    (result,) = read_kept().values()
    seconds = result["step_seconds"]
    assert set(seconds) == {"none", "listed", "all"}
    assert seconds["none"] < min(seconds["listed"], seconds["all"])


@pytest.mark.slow  # whole runs
@pytest.mark.usefixtures("listed")
def test_run_on_defaults_takes_kernels_and_keeps_them_when_it_resumes(
    tiny: tuple[str, ...], data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    settings = [
        f"data.path={data_file}", f"run.output={tmp_path}", "training.epochs=1", "training.max_steps=1",
        "data.rows=40", "data.validation_length=2", "data.test_length=2", "run.plots=false",
    ]  # fmt: skip
    folder, results = train(tiny_config(tiny, *settings), progress=False)
    assert results["kernels"] == described(Kernels.LISTED)
    lines = [record.getMessage() for record in caplog.records if "backend auto" in record.getMessage()]
    assert lines == ["backend auto: the kernels that are listed as faster on the interpreter (modelled)"]
    monkeypatch.setattr(dispatch, "applying", lambda gpu: None)
    monkeypatch.setattr("pgat_fast.model.kernel_choice.applying", lambda gpu: None)
    caplog.clear()
    results = train(tiny_config(tiny, *settings, "training.max_steps=2"), resume=folder, progress=False)[1]
    assert results["kernels"] == described(Kernels.LISTED)
    assert "backend auto: the listed kernels, as when this run began" in caplog.text
