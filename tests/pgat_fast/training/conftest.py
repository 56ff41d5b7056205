"""Fixtures of the tests of training."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.forked_command import ForkedCommand, nothing


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ForkedCommand]]:
    """Return a function that starts `pgat-fast train` with its arguments in a forked process, killed after the test."""
    with ExitStack() as processes:

        def start(
            *arguments: str,
            prepare: Callable[[], None] = nothing,
            environment: Mapping[str, str] = MappingProxyType({}),
        ) -> ForkedCommand:
            log = tmp_path / "logs" / f"{time.monotonic_ns()}.log"
            return processes.enter_context(ForkedCommand(["train", *arguments], log, prepare, environment))

        yield start
