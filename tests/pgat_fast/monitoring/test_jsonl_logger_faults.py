"""Faults of a file cost JsonlLogger no more than the lines that cannot be written."""

import errno
import io
import logging
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pgat_fast.monitoring.jsonl_logger import JsonlLogger, read_jsonl
from tests.pgat_fast.monitoring.helpers import read_strictly, warnings

MIB = 2**20


def test_full_disk_loses_lines_with_one_warning(
    metrics: JsonlLogger, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    metrics.log("info", {"fill": "x" * (MIB - 100)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        for step in range(3):  # a part of the first line fits
            metrics.log("info", {"step": step, "text": "y" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(read_strictly(path)) == 1
    assert len(warnings(caplog)) == 1
    assert f"{path} cannot be written" in warnings(caplog)[0]
    metrics.log("info", {"step": 3})
    assert read_strictly(path)[1:] == [{"step": 3}]
    metrics.close()
    assert warnings(caplog)[1:] == [f"{path}: 3 lines could not be written"]


def test_full_device_loses_lines_with_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.symlink_to("/dev/full")
    metrics = JsonlLogger(path, "info")
    for _ in range(3):
        metrics.log("info", {"a": 1})
    assert len(warnings(caplog)) == 1
    assert "No space left" in caplog.text
    path.unlink()
    metrics.log("info", {"a": 2})
    metrics.close()
    assert read_strictly(path) == [{"a": 2}]


def test_part_of_line_that_cannot_be_removed_is_removed_later(
    metrics: JsonlLogger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FaultyFile(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(data[:5])

        def truncate(self, size: int | None = None) -> int:
            raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: FaultyFile(path, mode))
        metrics.log("info", {"a": 1})
    assert path.read_bytes() == b'{"a":'
    metrics.log("info", {"a": 2})
    assert read_strictly(path) == [{"a": 2}]


def test_read_only_file_loses_lines_with_one_warning(
    metrics: JsonlLogger, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, mode: str, buffering: int) -> io.FileIO:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        for _ in range(3):
            metrics.log("info", {"a": 1})
    metrics.log("info", {"a": 2})
    metrics.close()
    assert "Permission denied" in warnings(caplog)[0]
    assert warnings(caplog)[1:] == [f"{path}: 3 lines could not be written"]
    assert read_strictly(path) == [{"a": 2}]


def test_deleted_file_is_created_again(metrics: JsonlLogger, path: Path) -> None:
    metrics.log("info", {"a": 1})
    path.unlink()
    for value in (2, 3):
        metrics.log("info", {"a": value})
    assert read_strictly(path) == [{"a": 2}, {"a": 3}]


def test_file_replaced_by_folder_loses_lines_until_folder_is_removed(
    metrics: JsonlLogger, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.log("info", {"a": 1})
    path.unlink()
    path.mkdir()
    for _ in range(3):
        metrics.log("info", {"a": 2})
    assert len(warnings(caplog)) == 1
    assert "Is a directory" in caplog.text
    path.rmdir()
    metrics.log("info", {"a": 3})
    assert read_strictly(path) == [{"a": 3}]


def test_missing_folder_loses_lines_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = JsonlLogger(tmp_path / "missing" / "metrics.jsonl", "info")
    for _ in range(3):
        metrics.log("info", {"a": 1})
    assert len(warnings(caplog)) == 1
    (tmp_path / "missing").mkdir()
    metrics.log("info", {"a": 2})
    metrics.close()
    assert read_strictly(tmp_path / "missing" / "metrics.jsonl") == [{"a": 2}]


def test_closed_logger_writes_no_lines(metrics: JsonlLogger, path: Path) -> None:
    metrics.close()
    metrics.close()
    metrics.log("error", {"a": 1})
    assert not path.exists()


def test_kills_while_writing_leave_every_whole_line_in_order(path: Path) -> None:
    program = (
        "import sys, pathlib; from pgat_fast.monitoring.jsonl_logger import JsonlLogger\n"
        "metrics = JsonlLogger(pathlib.Path(sys.argv[1]), 'info')\n"
        "print('ready', flush=True)\n"
        "number = 0\n"
        "while True: number += 1; metrics.log('info', {'number': number, 'text': 'x' * 5000})"
    )
    root = str(Path(__file__).parents[3])
    for _ in range(5):
        before = len(read_jsonl(path))
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, env={"PYTHONPATH": root}
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02)
        process.kill()
        process.communicate()
        JsonlLogger(path, "info").log("info", {"number": 0})  # removes a line that the kill left unfinished
        *numbers, _ = (line["number"] for line in read_strictly(path)[before:])
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 0
