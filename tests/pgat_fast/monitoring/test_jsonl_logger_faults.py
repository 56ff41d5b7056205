"""JsonlLogger loses only the lines that cannot be written."""

import io
import logging
import resource
import subprocess
import sys
import time
from collections.abc import Callable
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


FAULTS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object], str]] = {
    "full device": (lambda path: path.symlink_to("/dev/full"), Path.unlink, "No space left"),
    "folder in its place": (Path.mkdir, Path.rmdir, "Is a directory"),
    "no folder": (lambda path: path.parent.rmdir(), lambda path: path.parent.mkdir(), "No such file"),
}


@pytest.mark.parametrize(("damage", "repair", "message"), FAULTS.values(), ids=FAULTS)
def test_lines_are_lost_with_one_warning_until_file_can_be_written(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
    repair: Callable[[Path], object],
    message: str,
) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    metrics = JsonlLogger(path, "info")
    damage(path)
    for _ in range(3):
        metrics.log("info", {"a": 1})
    assert len(warnings(caplog)) == 1
    assert message in caplog.text
    repair(path)
    metrics.log("info", {"a": 2})
    metrics.close()
    assert warnings(caplog)[1:] == [f"{path}: 3 lines could not be written"]
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


def test_deleted_file_is_created_again(metrics: JsonlLogger, path: Path) -> None:
    metrics.log("info", {"a": 1})
    path.unlink()
    for value in (2, 3):
        metrics.log("info", {"a": value})
    assert read_strictly(path) == [{"a": 2}, {"a": 3}]


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
