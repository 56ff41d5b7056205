"""Ranks for tests, without torchrun."""

import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from tests.forked_command import ForkedCommand, nothing


def free_port() -> int:
    """Return the number of a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


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
        self.commands = []
        for rank in range(count):
            extra = environment if isinstance(environment, Mapping) else environment[rank]
            address = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(count), "RANK": str(rank)}
            local = {"LOCAL_WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
            log = logs / f"rank-{rank}.log"
            self.commands.append(ForkedCommand(arguments, log, prepare, {**address, **local, **extra}))
        self.processes = [command.process for command in self.commands]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for command in self.commands:
            command.__exit__(kind, error, traceback)

    def text(self, rank: int) -> str:
        """Return what a rank has written to standard error."""
        return self.commands[rank].text

    def wait_for(self, pattern: str, rank: int = 0, seconds: float = 240) -> None:
        """Wait until a line of `rank` matches `pattern`; fail where it ends before, or takes longer."""
        self.commands[rank].wait_for(pattern, seconds)

    def send(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank."""
        self.commands[rank].send(number)

    def exit_codes(self, seconds: float = 240) -> list[int | None]:
        """Wait for all ranks to end; return their exit codes."""
        deadline = time.monotonic() + seconds
        return [command.exit_code(max(0.0, deadline - time.monotonic())) for command in self.commands]
