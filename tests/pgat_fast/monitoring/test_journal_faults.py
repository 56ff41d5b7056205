"""A journal loses no line that could be written, and ends no run, whatever happens to its file."""

import logging
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgat_fast.monitoring.journal import Journal, JsonLinesHandler, read_journal
from tests.pgat_fast.monitoring.journals import strict, warnings

MIB = 2**20


def descriptor_of(journal: Journal) -> int:
    handler = journal.logger.handlers[0]
    assert isinstance(handler, JsonLinesHandler)
    return handler._descriptor


def test_a_full_disk_costs_lines_and_one_warning_and_later_lines_are_whole(
    journal: Journal, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    journal.write("info", {"fill": "x" * (MIB - 100)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        for step in range(3):  # the first line fits in part: what of it is written must go again
            journal.write("info", {"step": step, "text": "y" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(strict(path)) == 1
    assert len(warnings(caplog)) == 1
    assert f"{path} cannot be written" in warnings(caplog)[0]
    journal.write("info", {"step": 3})
    assert strict(path)[1:] == [{"step": 3}]
    assert "is written again; 3 lines are missing" in caplog.text
    journal.close()
    assert warnings(caplog)[1:] == [f"{path}: 3 lines could not be written"]


def test_a_device_without_space_costs_lines_and_one_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.symlink_to("/dev/full")
    journal = Journal(path, "info")
    for _ in range(3):
        journal.write("info", {"a": 1})
    assert len(warnings(caplog)) == 1
    assert "No space left" in caplog.text
    path.unlink()
    journal.write("info", {"a": 2})
    journal.close()
    assert strict(path) == [{"a": 2}]


def test_a_part_of_a_line_that_cannot_be_taken_back_spoils_no_later_line(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def refuse(descriptor: int, length: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda descriptor, data: write(descriptor, data[:5]))
        patch.setattr("os.ftruncate", refuse)
        journal.write("info", {"a": 1})
    journal.write("info", {"a": 2})
    journal.write("info", {"a": 3})
    assert path.read_bytes() == b'{"a":\n{"a": 2}\n{"a": 3}\n'
    assert read_journal(path) == [{"a": 2}, {"a": 3}]


def test_a_deleted_file_is_begun_anew(journal: Journal, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal.write("info", {"a": 1})
    path.unlink()
    for value in (2, 3):
        journal.write("info", {"a": value})
    assert strict(path) == [{"a": 2}, {"a": 3}]
    assert len(warnings(caplog)) == 1


def test_a_file_replaced_by_a_folder_costs_lines_until_the_folder_goes(
    journal: Journal, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal.write("info", {"a": 1})
    path.unlink()
    path.mkdir()
    for _ in range(3):
        journal.write("info", {"a": 2})
    assert len(warnings(caplog)) == 1
    assert "Is a directory" in caplog.text
    path.rmdir()
    journal.write("info", {"a": 3})
    assert strict(path) == [{"a": 3}]


def test_a_closed_descriptor_is_opened_again(journal: Journal, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal.write("info", {"a": 1})
    os.close(descriptor_of(journal))
    journal.write("info", {"a": 2})
    assert strict(path) == [{"a": 1}, {"a": 2}]
    assert len(warnings(caplog)) == 1


def test_a_descriptor_that_is_another_file_by_now_is_neither_written_nor_closed(
    journal: Journal, path: Path, tmp_path: Path
) -> None:
    taken = descriptor_of(journal)
    other = os.open(tmp_path / "weights", os.O_RDWR | os.O_CREAT)
    os.dup2(other, taken)  # closes the journal's file and takes its number
    journal.write("info", {"a": 1})
    journal.close()
    assert strict(path) == [{"a": 1}]
    assert os.fstat(taken).st_size == 0
    os.close(taken)
    os.close(other)


def test_a_folder_that_is_missing_costs_lines_and_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path / "missing" / "metrics.jsonl", "info")
    for _ in range(3):
        journal.write("info", {"a": 1})
    assert len(warnings(caplog)) == 1
    (tmp_path / "missing").mkdir()
    journal.write("info", {"a": 2})
    journal.close()
    assert strict(tmp_path / "missing" / "metrics.jsonl") == [{"a": 2}]


def test_closed_journals_take_no_lines_and_keep_no_descriptor(journal: Journal, path: Path) -> None:
    descriptor = descriptor_of(journal)
    journal.close()
    journal.close()
    journal.write("error", {"a": 1})
    assert strict(path) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_kills_while_writing_leave_every_whole_line_in_order(path: Path) -> None:
    program = (
        "import sys, pathlib; from pgat_fast.monitoring.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), 'info')\n"
        "print('ready', flush=True)\n"
        "number = 0\n"
        "while True: number += 1; journal.write('info', {'number': number, 'text': 'x' * 5000})"
    )
    root = str(Path(__file__).parents[3])
    for _ in range(5):
        before = len(read_journal(path))
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, env={"PYTHONPATH": root}
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02)
        process.kill()
        process.communicate()
        Journal(path, "info").close()  # cuts off what the kill may have left unfinished
        written = [line["number"] for line in strict(path)[before:]]
        assert written == list(range(1, len(written) + 1))
        assert len(written) > 0
