"""Ranks for tests, without torchrun: forked from one server process that has imported torch once."""

import multiprocessing
import os
import re
import signal
import socket
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
CONTEXT.set_forkserver_preload(["tests.pgat_fast.distributed.rank_processes", "pgat_fast.training.run"])


def free_port() -> int:
    """Return the number of a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


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


def nothing() -> None:
    pass


class Ranks:
    """Processes that run one `pgat-fast` command as ranks of a group; a context manager that ends them.

    Args:
        count: number of ranks.
        logs: folder for what each rank writes to standard error.
        arguments: arguments of the command.
        prepare: called in every rank before the command; a function of a module.
        environment: further environment variables, for all ranks, or for each.
    """

    def __init__(
        self,
        count: int,
        logs: Path,
        arguments: Sequence[str],
        prepare: Callable[[], None] = nothing,
        environment: Mapping[str, str] | Sequence[Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        port = str(free_port())
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"rank-{rank}.log" for rank in range(count)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            extra = environment if isinstance(environment, Mapping) else environment[rank]
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(count), "RANK": str(rank)}
            local = {"LOCAL_WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
            self.processes.append(
                CONTEXT.Process(target=run_command, args=(arguments, log, {**address, **local, **extra}, prepare))
            )
            self.processes[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def text(self, rank: int) -> str:
        """Return what a rank has written to standard error."""
        return self.logs[rank].read_text() if self.logs[rank].exists() else ""

    def wait_for(self, pattern: str, rank: int = 0, seconds: float = 240) -> None:
        """Wait until a line of `rank` matches `pattern`; fail where it ends before, or takes longer."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text(rank)):
            assert self.processes[rank].is_alive(), self.text(rank)
            assert time.monotonic() < deadline, self.text(rank)
            time.sleep(0.01)

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def exit_codes(self, seconds: float = 240) -> list[int | None]:
        """Wait for all ranks to end; return their exit codes."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]
