"""Comparison of backends on this machine: how many times faster each is, and how much memory it takes, in one table.

    pgat-fast bench compare                                  # a small model, some minutes
    pgat-fast bench compare --config configs/production_batched.yaml --backends reference,torch:compiled --save

A step is a whole training step (forward, backward, clipping, Adam) on random numbers of the configured shapes. Before
anything is timed, every backend's outputs and gradients are compared with the reference's. Then, `--processes` times,
each backend gets a process of its own; these processes take steps in turns, one each, so that a slow-down of the
machine affects all of them. "Times faster" is relative to the first backend, with the interval that contains the ratios
of 95 of 100 other such runs on this machine (`bench.ratios`); a ratio that is too noisy is not given as a number.
Memory is the peak of a process (on CUDA of its allocator, without the pools of CUDA graphs) above what it held after
the imports, once with warm-up and compiling, once in the timed steps alone; saved bytes are what autograd keeps between
forward and backward pass.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.backend_spec import QUICKSTART, BackendSpec, configure, given, parse_specs
from bench.machine import describe
from bench.parity import require_parity
from bench.processes import do_task, end, end_first, error_record, run_task, write
from bench.ratios import Ratio, ratio
from bench.result_files import ROOT, Record, folder_of
from bench.step import TrainedModel, count_step, timing
from pgat_fast.errors import ConfigError
from pgat_fast.model import backend_reasons
from pgat_fast.utils.io import first_unused
from pgat_fast.utils.table import format_columns

MODULE: Final = "bench.compare"
KIND: Final = "comparison"
"""The `kind` of the result files of this benchmark."""
TURNS_SECONDS: Final = 30.0
"""Seconds after which the processes of a round end their turns, though not before `FEWEST` of them."""
FEWEST: Final = 3
TIME_LIMIT: Final = 3600.0
"""Time limit in seconds for comparing and counting, and for each answer of a process that takes steps."""


def backends_here(compiled: bool) -> list[BackendSpec]:
    """Return what is compared by default: all backends that run here, and the usual manual optimisations."""
    specs = [BackendSpec("reference"), BackendSpec("reference", fused=True), BackendSpec("reference", kept=True)]
    specs.append(BackendSpec("torch", compiled=False))
    if backend_reasons()["triton"] is None:
        specs.append(BackendSpec("triton", compiled=False))
    if compiled:
        specs += [replace(spec, compiled=True) for spec in specs if not (spec.fused or spec.kept)]
    return specs


# --- a process that takes steps on request ----------------------------------------------------------------------------


def prepare(task: Record) -> Record:
    """Compare with the reference, and count bytes and FLOPs: runs in a process of its own, before anything is timed."""
    spec = BackendSpec(**task["spec"])
    config = configure(spec, task["config"], task["overrides"])
    require_parity(spec.backend, config.model.combiner)
    return count_step(config, spec, task["batch"])


def serve(task: Record) -> int:
    """Build the model, warm it up, and take a step for every line `step` of standard input, until the line `end`.

    Prints a line of JSON after the warm-up and for each line read, with an `error` if something failed.
    """
    end_first()
    try:
        spec = BackendSpec(**task["spec"])
        trained = TrainedModel(configure(spec, task["config"], task["overrides"]), spec, task["batch"])
        _answer({"ready": True})
        for line in sys.stdin:
            if line.strip() == "end":
                _answer(trained.record())
                return 0
            _answer({"seconds": trained.seconds_of(1)[0]})
    except Exception as error:  # a failure of one backend must not stop the others
        _answer(error_record(error))
    return 0


def _answer(record: Record) -> None:
    try:
        print(json.dumps(record), flush=True)
    except BrokenPipeError:  # the parent process has ended
        os._exit(1)


class Server:
    """Handle to a process that runs `serve`."""

    def __init__(self, task: Record, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, "--serve", json.dumps(task)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.error = self._read().get("error")

    def ask(self, word: str) -> Record:
        """Send `step` or `end`, and return the answer, which has an `error` if the process failed."""
        if self.error is None:
            with suppress(BrokenPipeError):
                assert self._process.stdin is not None
                self._process.stdin.write(word + "\n")
                self._process.stdin.flush()
            answer = self._read()
            self.error = answer.get("error")
            return answer
        return {"error": self.error}

    def _read(self) -> Record:
        assert self._process.stdout is not None
        late = threading.Timer(TIME_LIMIT, end, [self._process])
        late.daemon = True
        late.start()
        try:
            for line in self._process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
        finally:
            late.cancel()
        return {"error": f"the process ended with {self._process.wait()}, or gave no answer within {TIME_LIMIT:g} s"}

    def close(self) -> None:
        end(self._process)


# --- all backends -----------------------------------------------------------------------------------------------------


def take_steps(tasks: Mapping[str, Record], processes: int, steps: int) -> tuple[dict[str, list[Record]], list[str]]:
    """Take the steps of all tasks, in processes that take turns.

    Returns:
        name -> a record for each of its processes: `seconds` of the steps and `TrainedModel.record`, or only an
        `error`, after which the task is left out; and the names in the order in which the processes started.
    """
    records: dict[str, list[Record]] = {name: [] for name in tasks}
    order: list[str] = []
    with TemporaryDirectory() as caches:
        for number in range(processes):
            active = [name for name in tasks if not any("error" in record for record in records[name])]
            active = active[number % len(active) :] + active[: number % len(active)] if active else active
            servers: dict[str, Server] = {}
            try:
                for name in active:
                    print(f"process {number + 1} of {processes}: {name}", file=sys.stderr, flush=True)
                    order.append(name)
                    cache = str(Path(caches, str(list(tasks).index(name))))
                    servers[name] = Server(tasks[name], {"TORCHINDUCTOR_CACHE_DIR": cache})
                seconds: dict[str, list[float]] = {name: [] for name in active}
                started = time.monotonic()
                for turn in range(steps):
                    if turn >= FEWEST and time.monotonic() - started > TURNS_SECONDS:
                        break
                    for name in active[:: 1 if turn % 2 else -1]:
                        answer = servers[name].ask("step")
                        seconds[name] += [answer["seconds"]] if "seconds" in answer else []
                for name, server in servers.items():
                    answer = server.ask("end")
                    records[name].append(answer if "error" in answer else {"seconds": seconds[name], **answer})
            finally:
                for server in servers.values():
                    server.close()
    return records, order


def summarize(name: str, counted: Record, processes: list[Record]) -> Record:
    """Return the figures of one backend."""
    errors = [record["error"] for record in (counted, *processes) if "error" in record]
    if errors:
        return {"backend": name, "error": errors[0]}
    result = {"backend": name, **timing(processes), "process_seconds": [record["seconds"] for record in processes]}
    if result["compiled"]:
        result["compiled_saved_for_backward_bytes"] = processes[0]["compiler"]["saved_for_backward_bytes"]
    return {**result, "flop_per_second": counted["flops"] / result["step_seconds"]["median"], **counted}


def against(first: Record, other: Record) -> Ratio | None:
    """Return how many times faster `other` is than `first`; None if one of them failed."""
    if "error" in first or "error" in other:
        return None
    return ratio(first["process_seconds"], other["process_seconds"])


def as_table(results: Sequence[Record]) -> str:
    """Return the table; `explained` explains it."""
    rows = [("backend", "seconds a step", "times faster", "peak memory", "in the steps", "saved for backward")]
    for result in results:
        if "error" in result:
            rows.append((result["backend"], result["error"], "", "", "", ""))
            continue
        step = result["step_seconds"]
        rows.append(
            (
                result["backend"],
                f"{step['median']:.3g} ({step['quartile_1']:.3g} to {step['quartile_3']:.3g})",
                faster_in_words(result, results[0]),
                f"{result['peak_memory_gib'] * 1024:.0f} MiB",
                f"{result['steps_peak_memory_gib'] * 1024:.0f} MiB",
                f"{saved_bytes(result) / 1e6:.3g} MB",
            )
        )
    return format_columns(rows)


def faster_in_words(result: Record, first: Record) -> str:
    """Return how many times faster `result` is than `first`, with the interval."""
    if result is first:
        return "1"
    times = result.get("times_faster")
    return "not known" if times is None else str(Ratio.of(times))


def saved_bytes(result: Record) -> int:
    """Return the bytes that autograd keeps; for a compiled model, those it keeps when compiled, which may differ."""
    compiled = "compiled_saved_for_backward_bytes"
    return int(result[compiled if compiled in result else "saved_for_backward_bytes"])


MEANINGS: Final = {
    "reference": "the model in plain PyTorch, with the activation checkpointing that existing users train with",
    "reference:fused": "its attention without weights, so that torch may take its fused kernels",
    "reference:kept": "without activation checkpointing",
    "torch": "ours, in rewritten plain torch: the same numbers and gradients",
    "triton": "ours, by custom kernels",
}
"""Backend in the table -> its meaning; `compiled` and `eager` may follow."""


def explained(results: Sequence[Record], config: str, batch: int) -> str:
    """Return an explanation of the table for first-time readers."""
    machine = describe()
    lines = [
        f"A training step (forward, backward, clipping, Adam) of {config}, batch {batch}",
        f"on {machine['gpu'] or machine['processor']}, {machine['cores']} cores, torch {machine['torch']}.",
        "",
        "seconds a step      the median; in brackets the middle half of all steps",
        f"times faster        than {results[0]['backend']}; in brackets what to expect of another run, 19 times of 20",
        "peak memory         the most that a process held above what it held after the imports, compiling included",
        "in the steps        the highest in the timed steps, without warm-up and compiling",
        "saved for backward  what autograd keeps between forward and backward pass",
    ]
    backends = [result["backend"].split(":") for result in results]
    for name, meaning in MEANINGS.items():
        base, *words = name.split(":")
        if any(backend[0] == base and set(words) == set(backend[1:]) & {"fused", "kept"} for backend in backends):
            lines.append(f"{name:<20}{meaning}")
    if any("compiled" in backend for backend in backends):
        lines.append(f"{'compiled':<20}by torch.compile, which takes minutes before the first step; eager: without")
    return "\n".join(lines)


def compare(
    config: str, overrides: list[str], specs: Sequence[BackendSpec], batch: int, steps: int, processes: int
) -> Record:
    """Return all figures with their settings; the first of `specs` is the one the others are compared with.

    Raises PgatError if a configuration or a backend is not available, before anything is measured.
    """
    for spec in specs:
        configure(spec, config, overrides)
    common = {"config": config, "overrides": overrides, "batch": batch}
    tasks = {str(spec): {"spec": asdict(spec), **common} for spec in specs}
    counted = {}
    for name, task in tasks.items():
        print(f"compared with the reference, and counted: {name}", file=sys.stderr, flush=True)
        counted[name] = run_task(MODULE, task, TIME_LIMIT)
    valid_tasks = {name: task for name, task in tasks.items() if "error" not in counted[name]}
    records, order = take_steps(valid_tasks, processes, steps)
    results = [summarize(name, counted[name], records.get(name, [])) for name in tasks]
    for result in results[1:]:
        times = against(results[0], result)
        if times is not None:
            result["times_faster"] = times.record()
    path = Path(config).resolve()
    config_name = str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else config)
    settings = {"config": config_name, "overrides": overrides, "batch": batch, "steps": steps, "processes": processes}
    return {"kind": KIND, "settings": settings, "order": order, "results": results}


def result_file() -> Path:
    """Return the path of a new comparison on this machine: MACHINE/DATE/comparison.json, with a number if it exists."""
    folder = folder_of(describe())
    names = (f"comparison{'' if number == 1 else f'-{number}'}.json" for number in itertools.count(1))
    return first_unused(folder / name for name in names)


def run(args: argparse.Namespace) -> int:
    """Run `pgat-fast bench compare`: print the table, write the figures. Returns 1 if a backend failed."""
    if args.processes < 2:
        raise ConfigError("--processes must be at least 2, or nothing can be said of how sure a ratio is")
    if args.save and describe()["changed"]:
        raise ConfigError("--save: files differ from the commit, which a result must name: commit them first")
    specs = given(parse_specs, "--backends", args.backends) if args.backends else backends_here(args.compiled)
    result = compare(args.config or QUICKSTART, args.overrides, specs, args.batch, args.steps, args.processes)
    print(f"{as_table(result['results'])}\n\n{explained(result['results'], result['settings']['config'], args.batch)}")
    for path in [*([result_file()] if args.save else []), *([Path(args.json)] if args.json else [])]:
        write(path, MODULE, result)
        print(f"written to {path}", file=sys.stderr)
    return int(any("error" in backend_result for backend_result in result["results"]))


def main() -> int:
    """Run one of the measuring processes."""
    if sys.argv[1] == "--task":
        return do_task(prepare, sys.argv[2])
    return serve(json.loads(sys.argv[2]))


if __name__ == "__main__":
    sys.exit(main())
