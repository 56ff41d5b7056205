"""Measurements in processes of their own, which take turns: what disturbs the machine for a while favours none."""

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

from pgat_fast.utils.io import write_json

Record = dict[str, Any]
"""What one process found; `error` alone, a line, where it failed."""


def take_turns(
    module: str, tasks: Mapping[str, Record], rounds: int, time_limit: float
) -> tuple[dict[str, list[Record]], list[str]]:
    """Do every task once a round, each time in a new process, one after the other, every other round backwards.

    A task that fails is left out of the later rounds. torch's compiler starts with an empty cache for every task, which
    its rounds share. Standard error tells of every process.

    Args:
        module: the benchmark whose `main` hands the task on to `do_task`.
        tasks: name -> what to do, as JSON can say it.
        rounds: how often.
        time_limit: seconds that a process may take.

    Returns:
        name -> what its processes found, in order; and the names in the order in which they ran.
    """
    found: dict[str, list[Record]] = {name: [] for name in tasks}
    order = []
    with tempfile.TemporaryDirectory() as cache:
        for number in range(1, rounds + 1):
            for name in list(tasks)[:: 1 if number % 2 else -1]:
                if any("error" in record for record in found[name]):
                    continue
                order.append(name)
                started = time.monotonic()
                own = Path(cache, str(list(tasks).index(name)))
                record = run_task(module, tasks[name], time_limit, {"TORCHINDUCTOR_CACHE_DIR": str(own)})
                found[name].append(record)
                took = time.monotonic() - started
                print(f"round {number} of {rounds}: {name}: {record.get('error', f'{took:.0f} s')}", file=sys.stderr)
    return found, order


def run_task(module: str, task: Record, time_limit: float, environment: Mapping[str, str] | None = None) -> Record:
    """Do `task` in a new process of `module`; what it found, or why not. Its standard error is shown."""
    command = [sys.executable, "-m", module, "--task", json.dumps(task)]
    # In a session of its own: torch's compiler starts processes too, and all must go with it.
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
        record: Record = json.loads(lines[-1])
        return record
    how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
    return {"error": f"the process ended with {how}" + (" (out of memory?)" if process.returncode == -9 else "")}


def end(process: subprocess.Popen[str]) -> None:
    """End `process` and those that it has started, which may outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def do_task(measure: Callable[[Record], Record], task: str) -> int:
    """In the new process: print what `measure` finds, or what stopped it, as the last line. Returns the exit status."""
    end_first()
    print(json.dumps(attempt(measure, json.loads(task))), flush=True)
    return 0


def attempt(measure: Callable[[Record], Record], task: Record) -> Record:
    """Return what `measure` finds, or an `error`: whatever stops one measurement must not take the others with it."""
    try:
        return measure(task)
    except Exception as error:
        traceback.print_exc()
        return {"error": first_line(error)}


def end_first() -> None:
    """Where memory runs out, this process is to end, and no other; only Linux can be told."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def first_line(error: BaseException) -> str:
    """The type of `error` and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def positive(text: str) -> int:
    """Read a number that is at least 1. Raises argparse.ArgumentTypeError."""
    number = not_negative(text)
    if number == 0:
        raise argparse.ArgumentTypeError("0: at least 1 is needed")
    return number


def not_negative(text: str) -> int:
    """Read a number that is at least 0. Raises argparse.ArgumentTypeError."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 0")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark in processes has."""
    parser.add_argument("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=positive, default=3, help="processes of each, in turns (default: 3)")
    parser.add_argument("--time-limit", type=float, default=3600.0, help="seconds a process may take (default: 3600)")
    parser.add_argument(
        "--peak-seconds", type=float, default=0.2, help="how long each product of the peak is repeated (default: 0.2)"
    )
    parser.add_argument("--json", type=Path, help="write the results here")


def write(path: Path | None, module: str, results: Record) -> None:
    """Write `results` with the command and the machine, where a path is given."""
    if path:
        from bench.machine import describe  # it imports torch, of which a process that only runs others has no need

        of_program = sys.argv[1:2] == ["bench"]  # of `pgat-fast`, however it was started
        called = ["pgat-fast"] if of_program else ["python", "-m", module]
        command = shlex.join([*called, *sys.argv[1:]])
        write_json(path, {"command": command, "machine": describe(), **results})
