"""Helpers that write and read files of JSON lines, and monitors that write them."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from pgat_fast.monitoring.jsonl_logger import read_jsonl
from pgat_fast.monitoring.monitor import Monitor

CPU = torch.device("cpu")
SHAPE = [16, 250, 118]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def read_strictly(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file that must hold whole lines only, without NaN."""

    def refuse(name: str) -> float:
        raise ValueError(name)

    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def write_lines(path: Path, *lines: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def open_monitor(folder: Path, **settings: Any) -> Monitor:
    return Monitor(folder, CPU, **({"seq_len": 250, "interval": 5} | settings))


def values() -> dict[str, float]:
    return {"loss": 0.5, "learning_rate": 1e-3, "gradient_norm": 2.0}


def take_steps(monitor: Monitor, count: int, first: int = 1) -> list[bool]:
    """Return whether the run is over a limit after each of `count` steps."""
    return [monitor.step(1, step, SHAPE, 16, values).over for step in range(first, first + count)]


def stages(folder: Path, name: str) -> list[tuple[str, int]]:
    return [(line["stage"], line["step"]) for line in read_jsonl(folder / name)]
