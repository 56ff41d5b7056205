"""Measurements in separate processes that take turns, so that a temporary disturbance of the machine favours none."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.result_files import Record
from pgat_fast.errors import first_line
from pgat_fast.utils.io import write_json


def take_turns(
    module: str, tasks: Mapping[str, Record], rounds: int, time_limit: float
) -> tuple[dict[str, list[Record]], list[str]]:
    """Run every task once a round, each time in a new process, one after the other, in reverse in every other round.

    A task that fails is left out of the later rounds. torch's compiler starts with an empty cache for every task, which
    its rounds share. Progress is printed to standard error.

    Args:
        module: the benchmark whose `main` passes the task to `do_task`.
        tasks: name -> task, serializable as JSON.
        rounds: number of rounds.
        time_limit: time limit of a process, in seconds.

    Returns:
        name -> records of its processes, in order; and the names in the order in which they ran.
    """
    records: dict[str, list[Record]] = {name: [] for name in tasks}
    order = []
    with tempfile.TemporaryDirectory() as cache:
        for number in range(1, rounds + 1):
            for name in list(tasks)[:: 1 if number % 2 else -1]:
                if any("error" in record for record in records[name]):
                    continue
                order.append(name)
                started = time.monotonic()
                task_cache = Path(cache, str(list(tasks).index(name)))
                record = run_task(module, tasks[name], time_limit, {"TORCHINDUCTOR_CACHE_DIR": str(task_cache)})
                records[name].append(record)
                elapsed = time.monotonic() - started
                print(f"round {number} of {rounds}: {name}: {record.get('error', f'{elapsed:.0f} s')}", file=sys.stderr)
    return records, order


def run_task(module: str, task: Record, time_limit: float, environment: Mapping[str, str] | None = None) -> Record:
    """Run `task` in a new process of `module`; return its record, or an `error`. Its standard error is shown."""
    command = [sys.executable, "-m", module, "--task", json.dumps(task)]
    # A new session, so that processes started by torch's compiler are killed with it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, **(environment or {})}
    ) as process:
        try:
            output, _ = process.communicate(timeout=time_limit)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {time_limit:g} s"}
        finally:
            end(process)
    lines = output.splitlines()
    if process.returncode == 0 and lines:
        return json.loads(lines[-1])
    reason = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
    return {"error": f"the process ended with {reason}" + (" (out of memory?)" if process.returncode == -9 else "")}


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process and its descendants, which may have a session of their own."""
    if process.poll() is None:
        for child in _descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    """Return the ids of the processes that `pid` and its descendants have started; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text(errors="replace").rpartition(")")[2].split()  # the name may contain anything
            children.setdefault(int(fields[1]), []).append(int(status.parent.name))
    found = children.get(pid, [])
    for child in found:  # grows
        found += children.get(child, [])
    return found


def do_task(measure: Callable[[Record], Record], task: str) -> int:
    """Run `task` in the new process; print its record or `error` as the last line. Returns the exit status."""
    end_first()
    print(json.dumps(attempt(measure, json.loads(task))), flush=True)
    return 0


def attempt(measure: Callable[[Record], Record], task: Record) -> Record:
    """Return the record of `measure`, or an `error`: a failure of one measurement must not stop the others."""
    try:
        return measure(task)
    except Exception as error:
        traceback.print_exc()
        return error_record(error)


def error_record(error: Exception) -> Record:
    """Return the record of a measurement that failed: the type of `error` and the first line of its message."""
    return {"error": f"{type(error).__name__}: {first_line(error)}"}


def end_first() -> None:
    """Make this process the first to be killed when memory runs out; possible on Linux only."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")


def positive(text: str) -> int:
    """Parse an integer of at least 1. Raises argparse.ArgumentTypeError."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Parse an integer of at least 0. Raises argparse.ArgumentTypeError."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least {least}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options common to all benchmarks."""
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")


def add_turns(parser: argparse.ArgumentParser) -> None:
    """Add the options of benchmarks whose processes take turns."""
    add_arguments(parser)
    parser.add_argument("--rounds", type=positive, default=3, help="processes of each backend (default: %(default)s)")
    parser.add_argument(
        "--time-limit", type=float, default=3600.0, help="seconds that a process may take (default: %(default)s)"
    )
    parser.add_argument(
        "--peak-seconds", type=float, default=0.2, help="seconds for which each matrix product is repeated to find the "
        "peak (default: %(default)s)",
    )  # fmt: skip


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a module."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def write(path: str | Path | None, module: str, results: Record) -> None:
    """Write `results` with the command and the machine to `path`, if one is given."""
    if path:
        from bench.machine import describe  # imports torch, which a process that only runs others does not need

        of_program = sys.argv[1:2] == ["bench"]  # called as `pgat-fast`
        called = ["pgat-fast"] if of_program else ["python", "-m", module]
        command = shlex.join([*called, *sys.argv[1:]])
        write_json(Path(path), {"command": command, "machine": describe(), **results})
