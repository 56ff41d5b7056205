"""Benchmark tasks in the test process: for tests of what is measured, not of the processes that measure it."""

import json
import sys
from collections.abc import Callable, Mapping
from importlib import import_module

import pytest

from bench import processes
from bench.processes import attempt, run_task
from bench.result_files import Record


def never(task: Record) -> bool:
    """Return False: no task has a process of its own."""
    return False


def run_tasks_in_process(
    monkeypatch: pytest.MonkeyPatch, name: str, in_own_process: Callable[[Record], bool] = never
) -> None:
    """Run the tasks of the benchmark `name` here, except those for which `in_own_process` returns True.

    Importing torch and the benchmark takes five seconds, longer than the small models of tests.
    """

    def run(module: str, task: Record, time_limit: float, environment: Mapping[str, str] | None = None) -> Record:
        if in_own_process(task):
            return run_task(module, task, time_limit, environment)
        result: Record = json.loads(json.dumps(attempt(import_module(module).measure, json.loads(json.dumps(task)))))
        return result

    for module in (processes, import_module(name)):
        monkeypatch.setattr(module, "run_task", run)


def call_as_command(monkeypatch: pytest.MonkeyPatch, main: Callable[[], int], module: str, arguments: list[str]) -> int:
    """Return the exit status of `python -m MODULE ARGUMENTS`, run in this process."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    return main()
