"""Checkpoints: saving, reading, replacing, listing, pruning, and removal of orphans."""

import json
import logging
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from pgat_fast.errors import CheckpointError
from pgat_fast.training.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_weights,
    newest_good,
    prune,
    read_checkpoint,
    remove_orphans,
    save_checkpoint,
    verify_checkpoint,
)
from pgat_fast.training.manifest import find_checkpoints
from tests.pgat_fast.training.checkpoints import (
    FILES,
    checkpoint_of,
    convert_to_schema_1,
    flip_bit,
    name_of,
    names_in,
    same,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


def save(root: Path, *steps: int, best: str | None = None) -> list[Path]:
    return [save_checkpoint(root, name_of(step), checkpoint_of(step, best)) for step in steps]


# --- saving and reading ---


def test_saved_checkpoint_is_read_bit_for_bit(root: Path) -> None:
    saved = checkpoint_of(7)
    path = save_checkpoint(root, name_of(7), saved)
    assert path == root / name_of(7)
    assert verify_checkpoint(path) == []
    assert same(read_checkpoint(path), saved)
    assert names_in(root) == [path.name]
    assert names_in(path) == sorted(FILES)


def test_reading_without_training_state_skips_its_file(root: Path) -> None:
    (path,) = save(root, 7)
    (path / "training.safetensors").write_bytes(b"")
    checkpoint = read_checkpoint(path, training=False)
    assert same(checkpoint, Checkpoint(checkpoint_of(7).weights, {}, checkpoint_of(7).about))
    with pytest.raises(CheckpointError, match=r"training\.safetensors"):
        read_checkpoint(path)


def test_files_are_readable_by_safetensors_and_json(root: Path) -> None:
    (path,) = save(root, 7)
    saved = checkpoint_of(7)
    assert same(Checkpoint(load_file(path / "model.safetensors")), Checkpoint(saved.weights))
    assert json.loads((path / "manifest.json").read_text())["about"] == saved.about
    moment = saved.training["optimizer"]["state"][0]["exp_avg"]
    with safe_open(path / "training.safetensors", "pt") as file:
        assert same(file.get_tensor("optimizer.state.0.exp_avg"), moment)
        assert json.loads(file.metadata()["state"])["progress"] == saved.training["progress"]


def test_checkpoint_of_earlier_version_is_read_bit_for_bit_and_replaced(root: Path) -> None:
    saved = checkpoint_of(7)
    (path,) = save(root, 7)
    convert_to_schema_1(path)
    assert names_in(path) == ["manifest.json", "model.safetensors", "training.pt"]
    assert same(torch.load(path / "training.pt", weights_only=True), saved.training)
    assert verify_checkpoint(path) == []
    assert same(read_checkpoint(path), saved)
    assert list_checkpoints(root) == [path]
    save(root, 7)
    assert names_in(path) == sorted(FILES)
    assert names_in(root) == [path.name]


def test_view_is_stored_without_its_base_and_tied_weights_separately(root: Path) -> None:
    large = torch.arange(100_000.0)
    saved = Checkpoint({"a": large[:10], "b": large[:10], "c": large.view(2, -1).T[:3]}, {"part": large[5:7]})
    path = save_checkpoint(root, name_of(1), saved)
    assert sum(file.stat().st_size for file in path.iterdir()) < 10_000
    assert same(read_checkpoint(path).training["part"], large[5:7])
    assert same(read_checkpoint(path).weights["c"], large.view(2, -1).T[:3].contiguous())


Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"a": {"b": [1, np.ones(2)]}}, r"training\.a\.b\.1 is a numpy\.ndarray"),
        ({"loss": np.float64(1.0)}, r"training\.loss is a numpy\.float64"),
        ({"file": Path("x")}, r"training\.file is a pathlib\.\w+Path"),
        ({"pair": Pair(1, 2)}, r"training\.pair is a .*Pair"),
        ({"set": {1}}, r"training\.set is a builtins\.set"),
        ({"sparse": torch.eye(2).to_sparse()}, r"training\.sparse is a torch\.sparse_coo tensor"),
        ({"meta": torch.ones(1, device="meta")}, r"training\.meta is a .* on meta"),
        ({"wide": torch.ones(1).expand(10)}, r"training\.wide has 4 bytes in memory for a shape of 40"),
        ({"key": {(1, 2): 3}}, r"training\.key: the key '\(1, 2\)'"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, r"training\.a\.b: two tensors"),
        ({"huge": 1 << 100_000}, "integer string conversion"),
        ({"many": "x" * 20_000_000}, r"training: more than the 16,777,216 bytes"),
    ],
)
def test_state_that_cannot_be_stored_is_rejected_with_its_key(root: Path, training: Any, key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name_of(1)}: cannot be stored: .*{key}"):
        save_checkpoint(root, name_of(1), Checkpoint({}, training))
    assert not root.exists()


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.eye(2).to_sparse(), r"weights\.layer is a torch\.sparse_coo tensor"),
        (np.ones(2), r"weights\.layer is a numpy\.ndarray, not a tensor"),
        (torch.empty(2, dtype=torch.bits8), r".*torch\.bits8"),  # unknown to safetensors
    ],
)
def test_weights_that_cannot_be_stored_are_rejected(root: Path, weight: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name_of(1)}: cannot be stored: {message}"):
        save_checkpoint(root, name_of(1), Checkpoint({"layer": weight}))
    assert not root.exists()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"validation_loss": float("nan")}, "Out of range float values are not JSON compliant"),
        ({"data": {"rows": np.int64(3)}}, "Object of type int64 is not JSON serializable"),
        ({"data": {"span": (1, 2)}}, "about: changes in JSON"),
        ({"data": {1: 2}}, "about: changes in JSON"),
        ({"epoch": "three"}, r"about\.epoch is 'three': Input should be a valid integer"),
        ({"step": -1}, r"about\.step is -1"),
        ({"best": "../../etc"}, r"about\.best is '\.\./\.\./etc'"),
        ({"notes": "x" * 5_000_000}, r"about: 5,\d+,\d+ bytes"),
    ],
)
def test_metadata_that_json_cannot_represent_is_rejected(root: Path, about: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name_of(1)}: cannot be stored: {message}"):
        save_checkpoint(root, name_of(1), Checkpoint({}, {}, about))
    assert not root.exists()


@pytest.mark.parametrize("key", ["training", "about"])
def test_self_referential_states_are_rejected(root: Path, key: str) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    with pytest.raises(CheckpointError, match=r"cannot be stored: .*(nested too deeply|Circular reference)"):
        save_checkpoint(root, name_of(1), Checkpoint({}, **{key: loop}))


@pytest.mark.parametrize("name", ["best", "../step-1", "step-1\n", "step-1.damaged-1"])
def test_invalid_checkpoint_names_are_rejected(root: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="not a valid name of a checkpoint"):
        save_checkpoint(root, name, checkpoint_of(1))


def test_weights_that_do_not_fit_model_are_rejected_with_their_file(root: Path) -> None:
    (path,) = save(root, 1)
    model = nn.Linear(3, 2)
    assert load_weights(model, path).about["step"] == 1
    assert torch.equal(model.weight, checkpoint_of(1).weights["weight"])
    with pytest.raises(CheckpointError, match=rf"{name_of(1)}/model\.safetensors: does not fit"):
        load_weights(nn.Linear(2, 2), path)


def test_files_are_synced_before_rename_and_folder_after_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(root, 1)
    steps = []
    fsync, rename = os.fsync, os.rename

    def watch_fsync(descriptor: int) -> None:
        steps.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def watch_rename(source: Path, target: Path) -> None:
        rename(source, target)
        steps.append("rename")

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "rename", watch_rename)
    save(root, 2)
    assert steps == [*FILES, f".{name_of(2)}.{os.getpid()}.tmp", "rename", "checkpoints"]


# --- replacing a checkpoint of the same name ---


def test_saving_same_checkpoint_again_changes_nothing(root: Path) -> None:
    (path,) = save(root, 1)
    file_states = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in path.iterdir()}
    assert save(root, 1) == [path]
    assert {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in path.iterdir()} == file_states


def test_different_checkpoint_of_same_name_replaces_it(root: Path) -> None:
    save(root, 1)
    save(root, 1, best=name_of(1))
    assert same(read_checkpoint(root / name_of(1)), checkpoint_of(1, best=name_of(1)))
    assert names_in(root) == [name_of(1)]


def test_good_checkpoint_is_readable_while_it_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = save(root, 1)
    observations = []
    rename = os.rename

    def watch(*args: Any, **options: Any) -> None:
        rename(*args, **options)
        loaded = newest_good(root)
        assert loaded is not None
        observations.append((loaded[0].name, same(read_checkpoint(path), loaded[1])))

    monkeypatch.setattr(os, "rename", watch)
    save(root, 1, best=name_of(1))
    assert observations == [(f"{name_of(1)}.previous", True), (name_of(1), True)]


def test_damaged_checkpoint_of_same_name_is_set_aside(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        (path,) = save(root, 1)
        flip_bit(path / "training.safetensors", 8000)
        with caplog.at_level(logging.WARNING):
            save(root, 1)
        assert f"{path}: damaged: renamed to {path.name}.damaged-{number}" in caplog.text
        assert verify_checkpoint(path) == []
        assert verify_checkpoint(root / f"{path.name}.damaged-{number}") != []
    assert list_checkpoints(root) == [path]


# --- the checkpoints of a run ---


def test_only_checkpoints_are_listed_in_order_of_step(root: Path) -> None:
    assert list_checkpoints(root) == []
    names = [
        "epoch-0002-step-00000009",
        "epoch-0003-step-00000009",
        "epoch-0003-step-00000010",
        "epoch-10000-step-100000000",
    ]
    for name in reversed(names):
        save_checkpoint(root, name, checkpoint_of(1))
    for other in ("superseded", ".step-00000011.1.tmp", f"{names[0]}.damaged-1", "notes"):
        (root / other).mkdir()
    (root / "readme.txt").touch()
    (root / "step-00000012").mkdir()  # without files: found but not listed
    assert [path.name for path in list_checkpoints(root)] == names
    assert [path.name for path in find_checkpoints(root)] == [*names[:3], "step-00000012", names[3]]


def test_newest_good_skips_damaged_checkpoints_with_warnings(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_good(root) is None
    save(root, 1, 2, 3, 4)
    flip_bit(root / name_of(4) / "model.safetensors", 800)
    (root / name_of(3) / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING):
        loaded = newest_good(root)
    assert loaded is not None
    assert loaded[0] == root / name_of(2)
    assert same(loaded[1], checkpoint_of(2))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert f"{name_of(4)}/model.safetensors: damaged" in caplog.text
    assert f"{name_of(3)}/manifest.json: cannot be read" in caplog.text
    for step in (1, 2):
        flip_bit(root / name_of(step) / "manifest.json", 5)
    assert newest_good(root) is None


def test_pruning_keeps_newest_and_best_checkpoints(root: Path) -> None:
    save(root, 1, 2, best=name_of(1))
    save(root, 3, 4, 5, best=name_of(3))
    save(root, 6, best=name_of(3))
    assert prune(root, 2) == [root / name_of(step) for step in (1, 2, 4)]
    assert names_in(root) == [name_of(step) for step in (3, 5, 6)]
    assert prune(root, 2) == []


def test_damaged_checkpoints_do_not_count_in_pruning(root: Path) -> None:
    save(root, 1, 2, 3, 4)
    (root / name_of(4) / "manifest.json").write_text("{}")
    (root / name_of(3) / "training.safetensors").write_bytes(b"short")
    assert prune(root, 1) == [root / name_of(1)]
    assert names_in(root) == [name_of(step) for step in (2, 3, 4)]


def test_failed_removal_is_logged(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(root, 1, 2)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    assert prune(root, 1) == []
    assert f"{name_of(1)}: cannot be removed: Permission denied" in caplog.text
    assert len(list_checkpoints(root)) == 2


# --- leftovers of killed processes ---


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_orphans_of_ended_processes_are_removed(root: Path) -> None:
    save(root, 1)
    run, dead = root.parent, ended_process()
    orphans = [root / f".step-00000002.{dead}.tmp", run / f".status.json.{dead}.tmp", root / f".a b.{dead}.tmp"]
    orphans[0].mkdir()
    (orphans[0] / "model.safetensors").write_bytes(b"half")
    orphans[1].touch()
    orphans[2].touch()
    with subprocess.Popen(["sleep", "60"]) as alive:
        kept = [
            root / f".step-00000003.{alive.pid}.tmp",
            run / f".config.yaml.{os.getpid()}.tmp",
            run / f"notes.{dead}.tmp",
            run / f".notes.{dead}.txt",
            run / ".notes.tmp",
            run / ".notes.x.tmp",
            run.parent / f".other.{dead}.tmp",
        ]
        for path in kept:
            path.touch()
        assert sorted(remove_orphans(root)) == sorted(orphans)
        alive.kill()
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in orphans)
    assert verify_checkpoint(root / name_of(1)) == []
    assert remove_orphans(root) == [kept[0]]
    assert remove_orphans(run / "nowhere") == []


def test_orphan_older_than_process_of_same_pid_is_removed(root: Path) -> None:
    root.mkdir(parents=True)
    orphan, other = (folder / f".step-00000002.{os.getpid()}.tmp" for folder in (root, root.parent.parent))
    for path in (orphan, other):
        path.touch()
        os.utime(path, (0, 0))
    assert remove_orphans(root.parent) == []
    assert remove_orphans(root) == [orphan]
    assert other.exists()


@pytest.mark.parametrize("new_one", ["missing", "damaged"])
def test_interrupted_replacement_is_undone(root: Path, new_one: str) -> None:
    (path,) = save(root, 1)
    path.rename(f"{path}.previous")
    if new_one == "damaged":
        flip_bit(save(root, 2)[0].rename(path) / "training.safetensors", 800)
    else:
        assert list_checkpoints(root) == [Path(f"{path}.previous")]
        assert same(read_checkpoint(path), checkpoint_of(1))
    remove_orphans(root)
    assert same(read_checkpoint(path), checkpoint_of(1))
    assert not Path(f"{path}.previous").exists()


def test_remainder_of_finished_replacement_is_removed(root: Path) -> None:
    (path,) = save(root, 1)
    path.rename(f"{path}.previous")
    save(root, 2)[0].rename(path)
    assert remove_orphans(root) == [Path(f"{path}.previous")]
    assert same(read_checkpoint(path), checkpoint_of(2))
