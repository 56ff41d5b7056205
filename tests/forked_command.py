"""`pgat-fast` commands in processes forked from one server that has imported torch once: importing it takes seconds."""

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch

from pgat_fast.cli import main
from pgat_fast.distributed.environment import exit_process

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.forked_command", "pgat_fast.training.run"])


def nothing() -> None:
    pass


def run_command(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str], prepare: Callable[[], None]
) -> None:
    """Run `pgat-fast` with `arguments` in this process, which writes standard error to `log`."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    prepare()
    code = main(arguments)
    print(f"compiled graphs: {torch._dynamo.utils.counters['stats']['unique_graphs']}", file=sys.stderr)
    exit_process(code)


class ForkedCommand:
    """A process that runs a `pgat-fast` command; a context manager that kills it.

    Args:
        arguments: arguments of the command.
        log: file for what it writes to standard error.
        prepare: called in the process before the command; a function of a module.
        environment: further environment variables.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        prepare: Callable[[], None] = nothing,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.process = CONTEXT.Process(target=run_command, args=(arguments, log, dict(environment), prepare))
        self.process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.join()

    @property
    def text(self) -> str:
        """What the process has written to standard error so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, pattern: str, seconds: float = 240) -> None:
        """Wait until a line matches `pattern`; fail if the process ends before, or if the time is over."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert self.process.is_alive(), self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def exit_code(self, seconds: float = 240) -> int | None:
        """Wait for the end of the process; return its exit code, or None if it still runs after `seconds`."""
        self.process.join(seconds)
        return self.process.exitcode

    def stop(self, number: signal.Signals) -> float:
        """Send a signal, wait for the end of the process, and return the seconds that it took."""
        started = time.monotonic()
        self.send(number)
        self.exit_code(60)
        return time.monotonic() - started
