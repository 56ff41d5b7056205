"""Fixtures and collection hooks shared by all tests."""

import os
import time
from pathlib import Path

import pytest

from pgat_fast.data.build import build_file

# What one test has compiled, the others find. Tests must not change the cache of the user, in which times are recorded.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "inductor"))

LONGEST = (
    "test_golden_compiled.py", "test_production.py", "test_ranks.py", "test_launch.py", "test_signals.py",
    "test_model.py",
)  # fmt: skip
MARKERS = ("compile", "multiprocess", "slow")


STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--begin-within",
        type=float,
        metavar="MINUTES",
        help="skip the tests that have not begun by then (the summary counts them): for machines with a limit of time",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that would begin too late; half of the timeout of a test must be left."""
    minutes = item.config.getoption("--begin-within")
    if minutes is None:
        return
    timeout_marker = item.get_closest_marker("timeout")
    expected_seconds = timeout_marker.args[0] / 2 if timeout_marker is not None else 0.0
    if time.monotonic() - STARTED + expected_seconds > 60 * minutes:
        pytest.skip(f"not begun within {minutes:g} minutes (--begin-within)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests by expected duration, by file and marker: a long test that begins last would delay the end."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        marks = {mark.name for mark in item.iter_markers()}
        marker = next((index for index, name in enumerate(MARKERS) if name in marks), len(MARKERS))
        return item.path.name not in LONGEST, marker

    items.sort(key=place)


TINY = (
    "model.seq_len=6", "model.label_len=3", "model.pred_len=2", "model.d_model=13", "model.n_heads=1",
    "model.combiner=batched", "model.fusion_layers=1", "model.d_layers=1", "model.dropout=0.1",
    "data.validation_length=6", "data.test_length=7",
    "training.epochs=2", "training.batch_size=4", "training.warmup_epochs=1", "run.device=cpu", "run.plots=false",
)  # fmt: skip
"""Overrides for a model that trains in seconds on `data_file`."""


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data file of 40 real trading days.

    It gives 40 - 6 - 7 training rows, 20 training windows, 5 validation windows and 6 test windows.
    """
    path = tmp_path_factory.mktemp("data") / "prices_and_sky.csv"
    build_file(path, rows=40)
    return path


@pytest.fixture(scope="session")
def long_data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a data file of 400 real trading days."""
    path = tmp_path_factory.mktemp("data") / "prices_and_sky.csv"
    build_file(path, rows=400)
    return path


@pytest.fixture(scope="session")
def tiny_settings(data_file: Path) -> list[str]:
    """Return `TINY` with the data file, for fixtures with a scope wider than a test."""
    return [*TINY, f"data.path={data_file}"]


@pytest.fixture
def tiny(tiny_settings: list[str], tmp_path: Path) -> list[str]:
    """Return `tiny_settings` with an output folder for this test."""
    return [*tiny_settings, f"run.output={tmp_path / 'runs'}"]
