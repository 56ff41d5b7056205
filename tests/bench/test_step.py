"""The step benchmark measures each backend in a process of its own and writes what it found."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import TINY


def test_it_measures_and_writes_the_command_and_the_machine(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    arguments = ["--config", "configs/production_batched.yaml", "--batch", "2", "--steps", "2", "--json", str(out)]
    command = [sys.executable, "-m", "bench.step", *arguments, "--set", *TINY]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    record = json.loads(out.read_text())
    assert record["batch"] == 2
    assert record["command"].startswith("python -m bench.step --config")
    assert record["machine"]["cores"] >= 1
    (measured,) = record["results"]
    assert measured["backend"] == "reference"
    assert 0 < measured["step_seconds"]["quartile_1"] <= measured["step_seconds"]["quartile_3"] < 60
    assert 0 < measured["peak_memory_gib"] < 4
    assert "reference: " in result.stdout
