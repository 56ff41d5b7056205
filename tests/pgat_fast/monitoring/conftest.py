"""Fixtures: a file of metrics and its logger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgat_fast.monitoring.jsonl_logger import JsonlLogger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def metrics(path: Path) -> Iterator[JsonlLogger]:
    metrics = JsonlLogger(path, "info")
    yield metrics
    metrics.close()
