"""A journal holds whole lines of strict JSON, and tells no other logger of them."""

import gc
import logging
import os
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgat_fast.monitoring.journal import Journal, JsonLinesHandler
from tests.pgat_fast.monitoring.journals import (
    strict,
    warnings,
)

# --- what a line holds --------------------------------------------------------------------------------------------


def test_numbers_that_json_does_not_know_are_null_at_any_depth(journal: Journal, path: Path) -> None:
    journal.write("info", {"a": float("nan"), "b": [1.5, -float("inf")], "c": {"d": (np.float32("inf"),)}})
    assert strict(path) == [{"a": None, "b": [1.5, None], "c": {"d": [None]}}]


def test_numpy_and_torch_values_are_numbers(journal: Journal, path: Path) -> None:
    line = {
        "a": np.float64(1.5), "b": np.int64(2), "c": np.bool_(True), "d": torch.tensor(2.5, dtype=torch.bfloat16),
        "e": torch.tensor([1, 2]), "f": np.arange(2.0), "g": torch.Size([16, 250]), "h": torch.tensor(float("nan")),
    }  # fmt: skip
    journal.write("info", line)
    assert strict(path) == [
        {"a": 1.5, "b": 2, "c": True, "d": 2.5, "e": [1, 2], "f": [0.0, 1.0], "g": [16, 250], "h": None}
    ]


def test_texts_paths_and_dates_are_texts(journal: Journal, path: Path) -> None:
    journal.write("info", {"a": "line\nbreak, Ü, \ud800", "b": Path("x/y"), "c": date(2024, 2, 29)})
    assert strict(path) == [{"a": "line\nbreak, Ü, \ud800", "b": "x/y", "c": "2024-02-29"}]


class Broken:
    def tolist(self) -> Any:
        raise RuntimeError("CUDA error")


@pytest.mark.parametrize("value", [object(), Broken(), {1, 2}, 10**5000, 1j], ids=lambda value: type(value).__name__)
def test_a_value_without_a_json_form_is_null_and_named_once(
    value: Any, journal: Journal, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(3):
        journal.write("info", {"step": step, "odd": value})
    assert strict(path) == [{"step": step, "odd": None} for step in range(3)]
    assert len(warnings(caplog)) == 1
    assert "odd cannot be written as JSON" in caplog.text


def test_a_value_that_holds_itself_ends_nothing(journal: Journal, path: Path) -> None:
    value: list[Any] = []
    value.append(value)
    journal.write("info", {"step": 1, "odd": value})
    assert strict(path) == [{"step": 1, "odd": None}]


# --- levels and loggers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lowest", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
    ],
)
def test_lines_below_the_level_are_not_written(lowest: str, written: list[str], path: Path) -> None:
    journal = Journal(path, lowest)
    for level in ("debug", "info", "warning", "error"):
        journal.write(level, {"level": level})
    journal.close()
    assert [line["level"] for line in strict(path)] == written


def test_a_journal_that_is_off_makes_no_file(path: Path) -> None:
    journal = Journal(path, "off")
    journal.write("error", {"a": 1})
    journal.close()
    assert not path.exists()


def test_lines_reach_no_other_logger_and_handlers_do_not_pile_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    names = set(logging.root.manager.loggerDict)
    for run in range(20):
        journal = Journal(tmp_path / f"{run}.jsonl", "debug")
        journal.write("error", {"run": run})
        journal.close()
        assert strict(tmp_path / f"{run}.jsonl") == [{"run": run}]
    assert caplog.records == []
    assert set(logging.root.manager.loggerDict) == names
    del journal
    gc.collect()
    alive = [reference() for reference in logging._handlerList]  # type: ignore[attr-defined]
    assert not [
        handler for handler in alive if isinstance(handler, JsonLinesHandler) and handler.path.parent == tmp_path
    ]


def test_disabled_messages_do_not_disable_the_record_of_a_run(journal: Journal, path: Path) -> None:
    logging.disable(logging.CRITICAL)
    try:
        journal.write("info", {"a": 1})
    finally:
        logging.disable(logging.NOTSET)
    assert strict(path) == [{"a": 1}]


def test_another_handler_may_listen(journal: Journal) -> None:
    heard: list[Any] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.msg)

    journal.logger.addHandler(Listener())
    journal.write("info", {"a": 1})
    assert heard == [{"a": 1}]


# --- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 70_000, 140_000], ids=lambda length: f"{length} bytes")
def test_a_line_that_a_kill_left_unfinished_is_cut_off_and_nothing_else(path: Path, length: int) -> None:
    whole = b'{"a": 1}\n{"a": 2}\n'
    path.write_bytes(whole + b"x" * length)
    journal = Journal(path, "info")
    assert path.read_bytes() == whole
    journal.write("info", {"a": 3})
    journal.close()
    assert [line["a"] for line in strict(path)] == [1, 2, 3]


def test_a_file_of_one_unfinished_line_becomes_empty(path: Path) -> None:
    path.write_bytes(b"\0" * 200_000)
    Journal(path, "info").close()
    assert path.read_bytes() == b""


def test_whole_lines_are_kept_when_a_run_goes_on(path: Path) -> None:
    for value in range(3):
        journal = Journal(path, "info")
        journal.write("info", {"a": value})
        journal.close()
    assert [line["a"] for line in strict(path)] == [0, 1, 2]


def test_every_line_is_one_write(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = os.write

    def count(descriptor: int, data: bytes) -> int:
        written.append(data)
        return write(descriptor, data)

    monkeypatch.setattr("os.write", count)
    journal.write("info", {"long": "x" * 100_000})
    journal.write("info", {"a": 1})
    assert b"".join(written) == path.read_bytes()
    assert [data.count(b"\n") for data in written] == [1, 1]
