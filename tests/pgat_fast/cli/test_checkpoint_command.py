"""The commands `pgat-fast checkpoint verify`, `export` and `import`."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pgat_fast.cli import main
from pgat_fast.compat import Model, from_original_layout
from pgat_fast.config import config_to_dict, load_config
from pgat_fast.data.load import load_splits
from pgat_fast.model import build_model
from pgat_fast.training.checkpoint import load_weights, newest_good, read_checkpoint, save_checkpoint
from tests.pgat_fast.training.checkpoints import checkpoint_of, flip_bit, name_of, names_in

IMPORTED = "epoch-0000-step-00000000"
State = dict[str, Tensor]


# --- verify ---


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (1, 2):
        save_checkpoint(tmp_path / "run" / "checkpoints", name_of(step), checkpoint_of(step))
    return tmp_path / "run"


def test_verify_lists_good_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = run / "checkpoints"
    for path, steps in ((run, (1, 2)), (root, (1, 2)), (root / name_of(2), (2,))):
        assert main(["checkpoint", "verify", str(path)]) == 0
        assert capsys.readouterr().out == "".join(f"{root / name_of(step)}: OK\n" for step in steps)


def test_verify_prints_faults_and_exits_with_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / name_of(1)
    flip_bit(path / "model.safetensors", 800)
    (path / "training.safetensors").unlink()
    assert main(["checkpoint", "verify", str(run)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: model.safetensors: damaged: its sha256")
    assert first.endswith("; training.safetensors: cannot be read: No such file or directory")
    assert second.endswith(f"{name_of(2)}: OK")
    (path / "manifest.json").unlink()
    assert main(["checkpoint", "verify", str(path)]) == 1
    assert "manifest.json: cannot be read" in capsys.readouterr().out


def test_verify_without_checkpoints_is_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2
    assert f"{tmp_path}: no checkpoint found" in capsys.readouterr().err
    assert main(["checkpoint", "verify", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


# --- import and export ---


@pytest.fixture
def settings(tiny: list[str]) -> list[str]:
    """Return the settings of a tiny model that is compatible with the existing one."""
    return [*tiny, "model.compatibility=original"]


@pytest.fixture
def existing(settings: list[str]) -> State:
    """Return the state dict that the existing model's script would save."""
    torch.manual_seed(3)
    model = Model(Namespace(**config_to_dict(load_config(None, settings))["model"]))
    return dict(model.state_dict())


def do_import(file: Path, settings: list[str], out: Path) -> int:
    return main(["checkpoint", "import", str(file), "--set", *settings, "--out", str(out)])


def test_import_and_export_round_trip_is_bit_exact(
    settings: list[str], existing: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(existing, tmp_path / "existing.pth")
    assert do_import(tmp_path / "existing.pth", settings, tmp_path / "runs" / "imported") == 0
    assert f"imported/checkpoints/{IMPORTED}: the weights of" in capsys.readouterr().out
    assert main(["checkpoint", "export", str(tmp_path / "runs" / "imported"), "--out", str(tmp_path / "out.pth")]) == 0
    assert f"{IMPORTED} in the layout of the existing model" in capsys.readouterr().out

    exported = torch.load(tmp_path / "out.pth", weights_only=True)
    config = load_config(None, settings)
    before, after = from_original_layout(existing, config), from_original_layout(exported, config)
    assert list(exported) == list(existing)
    assert all(torch.equal(before[name], after[name]) for name in before)
    Model(Namespace(**config_to_dict(config)["model"])).load_state_dict(exported)


def test_imported_run_is_complete(settings: list[str], existing: State, tmp_path: Path) -> None:
    torch.save(existing, tmp_path / "existing.pth")
    folder = tmp_path / "runs" / "imported"
    assert do_import(tmp_path / "existing.pth", settings, folder) == 0
    assert names_in(folder) == ["checkpoints", "config.yaml"]
    config = load_config(folder / "config.yaml")
    assert (config.run.name, config.run.output) == ("imported", str(tmp_path / "runs"))
    assert config.model == load_config(None, settings).model

    newest = newest_good(folder / "checkpoints")
    assert newest is not None
    path, checkpoint = newest
    about = checkpoint.about
    _, splits = load_splits(config.data, config.model, torch.device("cpu"))
    assert checkpoint.training == {}
    assert (about["epoch"], about["step"], about["best"], about["validation_loss"]) == (0, 0, IMPORTED, None)
    assert about["config"] == config_to_dict(config)
    assert about["input_scaler"] == splits.input_scaler.to_dict()
    assert about["target_scaler"] == splits.target_scaler.to_dict()
    keys = {"path", "absolute_path", "rows", "first_date", "last_date", "base_price", "sha256", "calendar"}
    assert set(about["data"]) == keys
    assert about["data"]["rows"] == 40
    assert about["backend"] == "auto"
    assert "torch" in about["versions"]
    load_weights(build_model(config), path)


@pytest.mark.parametrize(
    "how",
    [
        *("model_state_dict", "state_dict", "module.", "_orig_mod.", "forecaster.model.", "both", "safetensors", "old"),
        *("float64", "beside", "renamed"),
    ],
)
def test_weights_are_found_in_all_file_layouts(
    settings: list[str], existing: State, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    file = tmp_path / "existing.pth"
    if how == "safetensors":
        file = tmp_path / "existing.safetensors"
        save_file(existing, file)
    elif how == "renamed":
        save_file(existing, file)
    elif how == "beside":
        beside = {"args": Namespace(lr=1e-3), "loss": np.float64(0.5), "optimizer": torch.optim.SGD([torch.ones(1)])}
        torch.save({"net": existing, **beside}, file)
    elif how == "old":
        torch.save(existing, file, _use_new_zipfile_serialization=False)
    elif how == "float64":
        torch.save({name: tensor.double() for name, tensor in existing.items()}, file)
    elif how == "both":
        prefixed = {f"module._orig_mod.{name}": tensor for name, tensor in existing.items()}
        torch.save({"epoch": 3, "state_dict": prefixed, "optimizer": {"state": {0: torch.ones(1)}}}, file)
    elif how.endswith("."):
        torch.save({how + name: tensor for name, tensor in existing.items()}, file)
    else:
        torch.save({"epoch": 3, how: existing, "loss": 0.5}, file)
    with caplog.at_level("INFO"):
        assert do_import(file, settings, tmp_path / "imported") == 0
    weights = read_checkpoint(tmp_path / "imported" / "checkpoints" / IMPORTED).weights
    expected = from_original_layout(existing, load_config(None, settings))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    if how.endswith("."):
        assert f"removing the prefix '{how}' from all names" in caplog.text
    if how in ("state_dict", "both"):
        assert "reading the weights under the key 'state_dict'" in caplog.text


def test_import_takes_the_weights_named_by_key(
    settings: list[str], existing: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, averaged = tmp_path / "existing.pth", {name: tensor + 1 for name, tensor in existing.items()}
    torch.save({"params": existing, "params_ema": averaged}, file)
    assert do_import(file, settings, tmp_path / "imported") == 2
    assert "choose one with --key" in capsys.readouterr().err
    assert do_import(file, [*settings, "--key", "params_ema"], tmp_path / "imported") == 0
    weights = read_checkpoint(tmp_path / "imported" / "checkpoints" / IMPORTED).weights
    expected = from_original_layout(averaged, load_config(None, settings))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_import_states_what_to_run_for_other_kinds_of_checkpoints(
    settings: list[str], existing: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"metadata": {}, "weight_map": {"a": "m-1.bin", "b": "m-2.bin"}}')
    torch.save({f"x{k}": torch.ones(1) for k in range(3000)}, tmp_path / "unknown.pth")
    for file, message in (
        (index, "an index of 2 files (m-1.bin, m-2.bin), which are not merged here: load each with"),
        (tmp_path, "dcp_to_torch"),
        (tmp_path / "unknown.pth", "and 2990 more"),
    ):
        assert do_import(file, settings, tmp_path / "imported") == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error) < 3000


def test_import_with_corrected_compatibility_warns(
    tiny: list[str], existing: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(existing, tmp_path / "existing.pth")
    do_import(tmp_path / "existing.pth", tiny, tmp_path / "imported")
    assert "model.compatibility is corrected" in caplog.text


def test_failed_import_keeps_existing_files_and_leaves_no_run(
    settings: list[str], existing: State, tmp_path: Path, capsys: pytest.CaptureFixture[str], data_file: Path
) -> None:
    file, out = tmp_path / "existing.pth", tmp_path / "imported"
    torch.save(existing, file)
    out.mkdir()
    (out / "notes.txt").touch()
    assert do_import(file, settings, out) == 2
    assert "exists already and is not empty" in capsys.readouterr().err
    assert names_in(out) == ["notes.txt"]
    for overrides, message in (
        (["data.path=nowhere.csv"], "nowhere.csv"),
        (["model.combiner=hierarchical"], f"{file}: the state dict does not fit"),
    ):
        assert do_import(file, [*settings, *overrides], tmp_path / "other") == 2
        assert message in capsys.readouterr().err
    assert do_import(tmp_path / "none.pth", settings, tmp_path / "other") == 2
    assert "none.pth: cannot be read: No such file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_failed_write_leaves_no_imported_run(
    settings: list[str], existing: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(existing, tmp_path / "existing.pth")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pgat_fast.training.original_checkpoints.write_atomically", full)
    assert do_import(tmp_path / "existing.pth", settings, tmp_path / "imported") == 2
    assert not (tmp_path / "imported").exists()


@pytest.fixture
def imported(settings: list[str], existing: State, tmp_path: Path) -> Path:
    torch.save(existing, tmp_path / "existing.pth")
    assert do_import(tmp_path / "existing.pth", settings, tmp_path / "imported") == 0
    return tmp_path / "imported"


def test_export_selects_checkpoint(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = imported / "checkpoints"
    last = "epoch-0001-step-00000005"
    first = read_checkpoint(root / IMPORTED)
    changed = {name: tensor + 1 for name, tensor in first.weights.items()}
    save_checkpoint(root, last, type(first)(changed, {}, first.about))
    states = {}
    for choice in ("best", "latest", IMPORTED, last):
        out = tmp_path / f"{choice}.safetensors"
        assert main(["checkpoint", "export", str(imported), "--out", str(out), "--checkpoint", choice]) == 0
        states[choice] = load_file(out)
    assert main(["checkpoint", "export", str(root / last), "--out", str(tmp_path / "path.pt")]) == 0
    states["path"] = torch.load(tmp_path / "path.pt", weights_only=True)
    name = "projection.weight"
    assert torch.equal(states["best"][name], states[IMPORTED][name])
    for choice in ("latest", "path"):
        assert torch.equal(states[choice][name], states[last][name])
    assert not torch.equal(states["best"][name], states["latest"][name])


def test_export_rejects_invalid_arguments(
    imported: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.pth"
    for arguments, message in (
        ([str(imported), "--out", str(tmp_path / "out.onnx")], "out.onnx: unknown format: name the file *.pth"),
        ([str(imported), "--out", str(out), "--checkpoint", name_of(9)], f"{name_of(9)}/manifest.json: cannot be read"),
        ([str(tmp_path / "nowhere"), "--out", str(out)], "nowhere: no checkpoint there can be read"),
        ([str(run), "--out", str(out)], f"{name_of(2)}: cannot be exported"),
    ):
        assert main(["checkpoint", "export", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_imported_run_can_be_resumed(imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_checkpoint(imported / "checkpoints" / IMPORTED).weights
    assert main(["train", "--quiet", "--resume", str(imported), "--max-steps", "3"]) == 0
    newest = newest_good(imported / "checkpoints")
    assert newest is not None
    assert newest[1].about["step"] == 3
    assert newest[1].training != {}
    after = newest[1].weights
    changes = [(after[name] - before[name]).abs().max().item() for name in before]
    # Three steps of Adam move no parameter by more than three times the learning rate, and some by about as much.
    assert 0 < max(changes) < 3.5 * load_config(imported / "config.yaml").training.learning_rate
