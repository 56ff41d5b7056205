"""Start-up time: imports, and the commands `--help` and `info`."""

import subprocess
import sys

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

COMMANDS = {
    "python": ["-c", ""],
    "import pgat_fast": ["-c", "import pgat_fast"],
    "import torch": ["-c", "import torch"],
    "pgat-fast --help": ["-m", "pgat_fast", "--help"],
    "pgat-fast info": ["-m", "pgat_fast", "info"],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_startup(benchmark: BenchmarkFixture, what: str) -> None:
    command = [sys.executable, *COMMANDS[what]]
    benchmark.pedantic(
        lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=5, warmup_rounds=1
    )
