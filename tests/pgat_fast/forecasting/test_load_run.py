"""Loading of finished and unfinished runs: choice of the checkpoint, overrides, and errors for missing parts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pgat_fast.errors import BackendError, CheckpointError, ConfigError
from pgat_fast.forecasting.load_run import load_run
from pgat_fast.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from tests.pgat_fast.forecasting.small_run import make_run, save

FIRST, SECOND, THIRD = (f"step-{step:08d}" for step in (0, 5, 10))


@pytest.fixture
def folder(tiny: list[str], tmp_path: Path) -> Path:
    """Create a run with three checkpoints, the second being the best; all weights of the k-th are k."""
    folder = tmp_path / "run"
    config, model, table, splits = make_run(folder, tiny)
    for number, step in enumerate((0, 5, 10), start=1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(number)
        save(folder, config, model, splits, table, step, best=SECOND if step else FIRST)
    return folder


def weight(folder: Path, checkpoint: str) -> tuple[str, float]:
    run = load_run(folder, checkpoint, device="cpu")
    assert not run.model.training
    return run.checkpoint.name, next(run.model.parameters()).flatten()[0].item()


@pytest.mark.parametrize(("asked", "name", "value"), [("best", SECOND, 2), ("latest", THIRD, 3), (FIRST, FIRST, 1)])
def test_requested_checkpoint_is_loaded(folder: Path, asked: str, name: str, value: float) -> None:
    assert weight(folder, asked) == (name, value)


def test_checkpoint_is_loaded_by_path(folder: Path) -> None:
    assert weight(folder, str(folder / "checkpoints" / FIRST)) == (FIRST, 1)


def test_run_without_validation_loads_newest_checkpoint_with_warning(
    tiny: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, model, table, splits = make_run(tmp_path / "run", tiny)
    save(tmp_path / "run", config, model, splits, table, 3, best=None)
    assert load_run(tmp_path / "run", device="cpu").checkpoint.name == "step-00000003"
    assert "no epoch has been validated yet" in caplog.text


def test_scalers_equal_those_of_training(tiny: list[str], tmp_path: Path) -> None:
    _, _, _, splits = make_run(tmp_path / "run", tiny)
    run = load_run(tmp_path / "run", device="cpu")
    assert run.input_scaler.to_dict() == splits.input_scaler.to_dict()
    assert run.target_scaler.to_dict() == splits.target_scaler.to_dict()


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_best_checkpoint_raises_error(folder: Path) -> None:
    spoil(folder / "checkpoints" / SECOND / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{SECOND}.*model.safetensors"):
        load_run(folder, device="cpu")
    assert weight(folder, "latest") == (THIRD, 3)


def test_best_checkpoint_is_found_if_newest_is_damaged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    spoil(folder / "checkpoints" / THIRD / "manifest.json")
    assert weight(folder, "best") == (SECOND, 2)
    assert THIRD in caplog.text


def use_another_model(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("fusion_layers: 1\n", "fusion_layers: 2\n", 1))


def change_scaler(folder: Path, value: object) -> None:
    path = folder / "checkpoints" / SECOND
    stored = read_checkpoint(path)
    save_checkpoint(path.parent, SECOND, Checkpoint(stored.weights, {}, stored.about | {"input_scaler": value}))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda run: run.rename(run.with_name("elsewhere")), "run: there is no such folder"),
    (lambda run: (run / "config.yaml").unlink(), r"run: it has no config\.yaml"),
    (lambda run: (run / "checkpoints").rename(run / "aside"), "checkpoints: no readable checkpoint"),
    (use_another_model, rf"{SECOND}.*does not fit"),
    (lambda run: (run / "intervals.json").write_text("{"), r"intervals\.json: cannot be read"),
    (lambda run: (run / "results.json").write_text("[]"), r"results\.json: not a JSON object"),
    (lambda run: change_scaler(run, {}), rf"{SECOND}: input_scaler: "),
    (
        lambda run: change_scaler(run, {"columns": ["a"], "mean": [0.0], "std": [1.0]}),
        rf"{SECOND}: input_scaler is for 1 columns, but the model has 118",
    ),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_error_names_missing_or_damaged_part(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_run(folder, device="cpu")


def test_error_names_missing_checkpoint(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="step-00000099"):
        load_run(folder, "step-00000099", device="cpu")


def test_overridable_settings_may_differ(folder: Path) -> None:
    run = load_run(folder, overrides=["trading_days=daily", "run.device=cpu"])
    assert run.config.data.trading_days == "daily"
    assert run.device == torch.device("cpu")


@pytest.mark.parametrize("override", ["model.dropout=0.5", "decoder_future=known", "target_kind=levels", "seed=1"])
def test_other_settings_may_not_differ_from_training(folder: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0].split(".")[-1] + "=.*: the run was trained with"):
        load_run(folder, device="cpu", overrides=[override])


def test_missing_device_is_rejected(folder: Path) -> None:
    with pytest.raises(BackendError, match="CUDA devices"):
        load_run(folder, device="cuda:77")


def test_results_of_finished_run_are_loaded(folder: Path) -> None:
    assert load_run(folder, device="cpu").results == {}
    (folder / "results.json").write_text(json.dumps({"name": "run"}))
    assert load_run(folder, device="cpu").results == {"name": "run"}
