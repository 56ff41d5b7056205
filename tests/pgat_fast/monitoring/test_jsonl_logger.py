"""JsonlLogger writes whole lines of strict JSON."""

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pgat_fast.monitoring.jsonl_logger import JsonlLogger
from tests.pgat_fast.monitoring.helpers import (
    read_strictly,
    warnings,
)

# --- values -----------------------------------------------------------------------------------------------------


def test_numbers_that_are_not_finite_are_null_at_any_depth(metrics: JsonlLogger, path: Path) -> None:
    metrics.log("info", {"a": float("nan"), "b": [1.5, -float("inf")], "c": {"d": (np.float32("inf"),)}})
    assert read_strictly(path) == [{"a": None, "b": [1.5, None], "c": {"d": [None]}}]


def test_numpy_and_torch_values_are_numbers(metrics: JsonlLogger, path: Path) -> None:
    line = {
        "a": np.float64(1.5), "b": np.int64(2), "c": np.bool_(True), "d": torch.tensor(2.5, dtype=torch.bfloat16),
        "e": torch.tensor([1, 2]), "f": np.arange(2.0), "g": torch.Size([16, 250]), "h": torch.tensor(float("nan")),
    }  # fmt: skip
    metrics.log("info", line)
    assert read_strictly(path) == [
        {"a": 1.5, "b": 2, "c": True, "d": 2.5, "e": [1, 2], "f": [0.0, 1.0], "g": [16, 250], "h": None}
    ]


def test_any_text_is_read_back(metrics: JsonlLogger, path: Path) -> None:
    metrics.log("info", {"a": "line\nbreak, Ü, \ud800"})
    assert read_strictly(path) == [{"a": "line\nbreak, Ü, \ud800"}]


class Broken:
    def tolist(self) -> Any:
        raise RuntimeError("CUDA error")


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize("value", [object(), Broken(), {1, 2}, 10**5000, 1j, RECURSIVE], ids=lambda v: type(v).__name__)
def test_value_without_json_form_is_null_with_one_warning(
    value: Any, metrics: JsonlLogger, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(3):
        metrics.log("info", {"step": step, "odd": value})
    assert read_strictly(path) == [{"step": step, "odd": None} for step in range(3)]
    assert len(warnings(caplog)) == 1
    assert "odd is written as null because it has no JSON form" in caplog.text


# --- levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
    ],
)
def test_lines_below_the_level_are_not_written(min_level: str, written: list[str], path: Path) -> None:
    metrics = JsonlLogger(path, min_level)
    for level in ("debug", "info", "warning", "error"):
        metrics.log(level, {"level": level})
    metrics.close()
    assert [line["level"] for line in read_strictly(path)] == written


def test_logging_disable_does_not_disable_lines(metrics: JsonlLogger, path: Path) -> None:
    logging.disable(logging.CRITICAL)
    try:
        metrics.log("info", {"a": 1})
    finally:
        logging.disable(logging.NOTSET)
    assert read_strictly(path) == [{"a": 1}]


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_lines", [b'{"a": 1}\n{"a": 2}\n', b""])
@pytest.mark.parametrize("length", [1, 140_000])
def test_unfinished_line_of_killed_process_is_removed(path: Path, whole_lines: bytes, length: int) -> None:
    path.write_bytes(whole_lines + b"x" * length)
    metrics = JsonlLogger(path, "info")
    metrics.log("info", {"a": 3})
    metrics.close()
    assert path.read_bytes() == whole_lines + b'{"a": 3}\n'


def test_two_writers_append_whole_lines(path: Path) -> None:
    writers = [JsonlLogger(path, "info") for _ in range(2)]
    for step in range(3):
        for number, writer in enumerate(writers):
            writer.log("info", {"writer": number, "step": step})
    assert read_strictly(path) == [{"writer": number, "step": step} for step in range(3) for number in range(2)]


def test_threads_append_whole_lines(metrics: JsonlLogger, path: Path) -> None:
    def write(number: int) -> None:
        for step in range(50):
            metrics.log("info", {"thread": number, "step": step, "text": "x" * 5000})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_strictly(path)) == 200
