"""A finished run of the tiny model, and copies of it to change."""

import json
import shutil
from pathlib import Path

import pytest

from tests.pgat_fast.training.runs import interrupted


@pytest.fixture(scope="session")
def trained(tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of three epochs that was stopped in the second and resumed, and of which one scenario has failed."""
    folder = tmp_path_factory.mktemp("runs") / "nightly"
    settings = ["training.epochs=3", "run.monitor_interval=1", "run.memory_limit_gb=6", "run.compile=off"]
    results = interrupted([*tiny_settings, *settings], folder, [17])
    results["adversarial"]["scenarios"]["feature_dropout"] |= {
        "status": "failed", "metrics": None, "change": None, "shift": None, "finite": False,
        "error": "the forecasts are not finite",
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run."""
    return Path(shutil.copytree(trained, tmp_path / "nightly"))
