"""Bar R2: faults in the files of a checkpoint, or while one is saved, are detected and damage no older one."""

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgat_fast.errors import CheckpointError
from pgat_fast.training.checkpoint import (
    Checkpoint,
    newest_good,
    read_checkpoint,
    remove_orphans,
    save_checkpoint,
    verify_checkpoint,
)
from tests.combinations import pairwise_each_value_first
from tests.pgat_fast.training.checkpoints import (
    FILES,
    assert_detected,
    checkpoint_of,
    flip_bit,
    name_of,
    names_in,
    same,
)

SYSTEM_CALLS = (
    "close", "fstat", "fsync", "listdir", "lstat", "mkdir", "open", "rename", "rmdir", "scandir", "stat", "statvfs",
    "unlink", "write",
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder of checkpoints with a good one of step 1."""
    root = tmp_path / "run" / "checkpoints"
    save_checkpoint(root, name_of(1), checkpoint_of(1))
    return root


@pytest.fixture
def newest(root: Path) -> Path:
    """Return a second checkpoint, to be damaged."""
    return save_checkpoint(root, name_of(2), checkpoint_of(2))


# --- damaged files ---


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_and_truncation_is_detected(newest: Path, file: str) -> None:
    path = newest / file
    content, rng = path.read_bytes(), random.Random(0)
    for bit in rng.sample(range(8 * len(content)), 150):
        flip_bit(path, bit)
        assert len(verify_checkpoint(newest)) == 1, f"bit {bit}"
        flip_bit(path, bit)
    assert verify_checkpoint(newest) == []
    for length in {0, 1, 7, 8, 9, len(content) - 1, *rng.sample(range(len(content)), 100)}:
        path.write_bytes(content[:length])
        assert len(verify_checkpoint(newest)) == 1, f"{length} bytes"
    path.write_bytes(content + b"\n")
    assert len(verify_checkpoint(newest)) == 1


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.rename(path.parent.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent.parent / "elsewhere")


def flip(path: Path) -> None:
    flip_bit(path, 8 * 100)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, Path.unlink, empty, make_folder, make_pipe, make_link])
@pytest.mark.parametrize("file", FILES)
def test_damaged_file_falls_back_to_previous_checkpoint(
    newest: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(newest / file)
    assert_detected(newest, file)


def test_file_of_another_checkpoint_is_detected(newest: Path) -> None:
    shutil.copy(newest.parent / name_of(1) / "model.safetensors", newest / "model.safetensors")
    assert_detected(newest, "model.safetensors")


def test_checkpoint_that_is_link_or_file_is_not_read(newest: Path) -> None:
    newest.rename(newest.parent.parent / "elsewhere")
    newest.symlink_to(newest.parent.parent / "elsewhere")
    assert_detected(newest, "")
    newest.unlink()
    newest.touch()
    assert_detected(newest, "")


def test_verification_lists_all_faults(newest: Path) -> None:
    flip_bit(newest / "model.safetensors", 800)
    (newest / "training.safetensors").unlink()
    faults = verify_checkpoint(newest)
    assert [fault.split(": ")[0] for fault in faults] == [
        str(newest / "model.safetensors"),
        str(newest / "training.safetensors"),
    ]
    assert verify_checkpoint(newest.parent / name_of(9)) == [
        f"{newest.parent / name_of(9)}/manifest.json: cannot be read: No such file or directory"
    ]


# --- faults while saving ---


class Faults:
    """Records system calls and makes the `at`-th one fail, or all from there on if `lasting`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.at: int | None = None
        self.number = errno.EIO
        self.lasting = False
        for name in SYSTEM_CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            self.calls.append(name)
            index = len(self.calls) - 1
            if self.at is not None and (index == self.at or (self.lasting and index > self.at)):
                if name == "close":
                    call(*args)
                raise OSError(self.number, os.strerror(self.number))
            return call(*args, **options)

        return wrapped

    def start(self, at: int | None, number: int = errno.EIO, lasting: bool = False) -> None:
        self.calls, self.at, self.number, self.lasting = [], at, number, lasting

    def stop(self) -> None:
        self.at = None


@pytest.fixture
def faults() -> Iterator[Faults]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Faults(monkeypatch)


def nothing(path: Path) -> None:
    """Leave `path` without a checkpoint."""


def good(path: Path) -> None:
    """Write a good checkpoint to `path`."""
    save_checkpoint(path.parent, path.name, checkpoint_of(3))


def damaged(path: Path) -> None:
    """Write a damaged checkpoint to `path`."""
    good(path)
    flip_bit(path / "training.safetensors", 800)


def error_of_saving(root: Path, name: str, checkpoint: Checkpoint) -> str | None:
    try:
        save_checkpoint(root, name, checkpoint)
    except CheckpointError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("before", "number"),
    pairwise_each_value_first([nothing, good, damaged], [errno.EIO, errno.ENOSPC, errno.EACCES]),
)
def test_failure_of_any_single_call_damages_no_checkpoint(
    root: Path, faults: Faults, before: Callable[[Path], None], number: int
) -> None:
    old, new, path = checkpoint_of(3), checkpoint_of(2), root / name_of(2)
    before(path)
    faults.start(None)
    save_checkpoint(root, path.name, new)
    calls = list(faults.calls)
    assert set(calls) >= {"mkdir", "open", "write", "fsync", "close", "rename", "statvfs"}
    failures = 0
    for index, call in enumerate(calls):
        shutil.rmtree(root)
        save_checkpoint(root, name_of(1), checkpoint_of(1))
        before(path)
        names_before = names_in(root)
        faults.start(index, number)
        error = error_of_saving(root, path.name, new)
        faults.stop()
        assert verify_checkpoint(root / name_of(1)) == [], call
        if error is None:  # a dispensable call, such as the removal of a file that is no longer needed
            assert same(read_checkpoint(path), new), call
            continue
        failures += 1
        assert str(root) in error, call
        assert os.strerror(number) in error, call
        assert not [name for name in names_in(root) if name.endswith(".tmp")], call
        if before is good:
            assert same(read_checkpoint(path), old), call
        if before is not damaged:  # a damaged one may have been set aside by then
            assert names_in(root) == names_before, call
    assert failures >= len([call for call in calls if call in ("mkdir", "write", "fsync", "rename")])


@pytest.mark.parametrize("before", [nothing, pytest.param(good, marks=pytest.mark.slow)])
def test_failure_of_all_calls_from_any_one_on_damages_no_checkpoint(
    root: Path, faults: Faults, before: Callable[[Path], None]
) -> None:
    path = root / name_of(2)
    before(path)
    faults.start(None)
    save_checkpoint(root, path.name, checkpoint_of(2))
    for index in range(len(faults.calls)):
        faults.stop()
        shutil.rmtree(root)
        save_checkpoint(root, name_of(1), checkpoint_of(1))
        before(path)
        faults.start(index, lasting=True)
        error_of_saving(root, path.name, checkpoint_of(2))
        faults.stop()
        assert verify_checkpoint(root / name_of(1)) == []
        loaded = newest_good(root)
        assert loaded is not None
        if before is good:
            assert loaded[0].name.removesuffix(".previous") == name_of(2)
        save_checkpoint(root, path.name, checkpoint_of(2))
        remove_orphans(root)
        assert names_in(root) == [name_of(1), name_of(2)]


def test_lack_of_disk_space_is_detected_before_anything_is_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1234))
    with pytest.raises(
        CheckpointError, match=r"checkpoints: cannot be written: [\d,]+ bytes are needed, 1,234 are free"
    ):
        save_checkpoint(root, name_of(2), checkpoint_of(2))
    assert names_in(root) == [name_of(1)]


def test_folder_without_write_permission_raises_checkpoint_error(root: Path) -> None:
    """Save in a process without the rights of root, to which permissions do not apply."""
    checkpoint = checkpoint_of(2)
    root.chmod(0o555)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(root.parent)  # parent folders may be closed to other users
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            error = error_of_saving(Path(root.name), name_of(2), checkpoint)
            code = 0 if error is not None and "cannot be written: Permission denied" in error else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    root.chmod(0o755)
    assert names_in(root) == [name_of(1)]
    assert verify_checkpoint(root / name_of(1)) == []
