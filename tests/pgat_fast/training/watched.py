"""A training process whose log is read while it runs."""

import re
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]


class Watched:
    """A process; `lines` is its output to standard error so far."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.popen = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self.lines.extend(iter(self.popen.stderr.readline, ""))

    def wait_for(self, pattern: str, seconds: float = 240, after: int = 0) -> None:
        """Wait until a line from number `after` on matches `pattern`; fail if the process ends or the time is over."""
        deadline = time.monotonic() + seconds
        while not any(re.search(pattern, line) for line in self.lines[after:]):
            assert self.popen.poll() is None, "".join(self.lines)
            assert time.monotonic() < deadline, "".join(self.lines)
            time.sleep(0.002)

    def end(self, seconds: float = 60) -> int:
        """Wait for the end of the process; return its exit code."""
        code = self.popen.wait(timeout=seconds)
        self.reader.join()
        return code
