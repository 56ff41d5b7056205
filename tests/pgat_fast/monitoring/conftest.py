"""A journal of metrics in the folder of a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pgat_fast.monitoring.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = Journal(path, "info")
    yield journal
    journal.close()
