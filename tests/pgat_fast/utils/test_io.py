"""Files are written completely or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pgat_fast.utils.io import sync_directory, temporary_name, write_atomically, write_json


def test_write_replaces_content_without_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_keeps_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_rename_and_folder_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    steps = []
    fsync, rename = os.fsync, os.replace

    def watch_fsync(descriptor: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def watch_rename(*args: Any) -> None:
        steps.append("rename")
        rename(*args)

    monkeypatch.setattr("os.fsync", watch_fsync)
    monkeypatch.setattr("os.replace", watch_rename)
    write_atomically(path, b"new")
    assert steps == [str(temporary_name(path)), "rename", str(tmp_path)]


def test_sync_directory_ignores_einval_but_raises_eio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("os.fsync", fsync)

    refuse(errno.EINVAL)
    sync_directory(tmp_path)
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        sync_directory(tmp_path)


def test_write_json_rejects_nan(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"value": 1.5})
    assert json.loads(path.read_text()) == {"value": 1.5}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"value": float("nan")})
    assert json.loads(path.read_text()) == {"value": 1.5}
