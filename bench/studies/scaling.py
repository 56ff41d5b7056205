"""Growth of time and memory with the days of history, the windows of a batch, and the number of bodies.

    pgat-fast bench scaling --what history --json bench/results/MACHINE/DATE/scaling.json

History and batch are measured on whole training steps, at a quarter of the production width; bodies, of which the model
has 13, on its combiner alone (forward and backward), with random adjacencies of more or fewer bodies. Every size is
measured in a process of its own, one backend after the other. An exponent p is that of the best fit
`constant + factor * size ** p`: 1 is linear, 2 quadratic. `system_share` is the fraction of the processor time spent in
the system, mostly for allocating memory.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import torch

from bench.backend_spec import QUICKSTART, BackendSpec, configure, given, parse_specs
from bench.measure import PeakMemory, fit_exponent
from bench.processes import do_task, run_task, write
from bench.result_files import Record
from bench.step import TrainedModel
from bench.studies.combiner import combiner_of, random_inputs, run_pass
from bench.timing import quartiles, seconds_of
from pgat_fast.model.precision import resolve_precision
from pgat_fast.utils.device import resolve_device
from pgat_fast.utils.system import GIB
from pgat_fast.utils.table import format_columns

MODULE: Final = "bench.studies.scaling"
SIZES: Final = {"history": (64, 128, 256, 512, 1024, 2000), "batch": (1, 4, 16, 64), "bodies": (8, 16, 32, 64)}
"""Quantity that grows -> its sizes."""
DAYS: Final = 32
"""Days of history while the batch grows."""
TIMESTEPS: Final = 4
"""Timesteps of the combiner while the bodies grow."""
REPEATS: Final = 3
TIME_LIMIT: Final = 600.0
"""Time limit of a process, in seconds."""


def measure(task: Record) -> Record:
    """Measure one size, in a process of its own: quartiles of the seconds, and peak memory above the import."""
    spec, size = BackendSpec(**task["spec"]), task["size"]
    grows = {"history": [f"model.seq_len={size}"], "batch": [f"model.seq_len={DAYS}"]}
    config = configure(spec, QUICKSTART, [*task["overrides"], *grows.get(task["what"], [])])
    if task["what"] == "bodies":
        device = resolve_device(config.run.device)
        precision = resolve_precision(config.run.precision, device)
        torch.manual_seed(config.training.seed)
        memory = PeakMemory(device)
        combiner = combiner_of(config, spec).to(device)
        inputs = random_inputs(config, 1, TIMESTEPS, device, nodes=size)
        run = partial(run_pass, combiner, inputs, precision, device)
        seconds_of(run, 1, device)
        timing = timed(lambda: seconds_of(run, REPEATS, device))
        return {**timing, "memory_gib": memory.above_baseline() / GIB}
    trained = TrainedModel(config, spec, size if task["what"] == "batch" else 1)
    timing = timed(lambda: trained.seconds_of(REPEATS))
    return {**timing, "memory_gib": trained.record()["peak_memory_gib"]}


def timed(run: Callable[[], list[float]]) -> Record:
    """Return quartiles of the seconds that `run` returns, and the system's share of the processor time meanwhile."""
    started = os.times()
    seconds = quartiles(run())
    user, system = (getattr(os.times(), name) - getattr(started, name) for name in ("user", "system"))
    return {"seconds": seconds, "system_share": system / (user + system) if user + system else 0.0}


def summarize(what: str, backend: str, sizes: Sequence[int], records: Sequence[Record]) -> Record:
    """Return the figures of one backend as one quantity grows."""
    points = [(size, record) for size, record in zip(sizes, records, strict=True) if "error" not in record]
    succeeded = [size for size, _ in points]
    return {
        "what": what,
        "backend": backend,
        "sizes": list(sizes),
        "records": list(records),
        "seconds_exponent": fit_exponent(succeeded, [record["seconds"]["median"] for _, record in points]),
        "memory_exponent": fit_exponent(succeeded, [record["memory_gib"] for _, record in points]),
    }


def as_table(results: Sequence[Record]) -> str:
    """Return the results as a table, with a row of exponents below those of the sizes."""
    rows = [("what grows", "backend", "size", "seconds", "MiB above the import")]
    for result in results:
        what, backend = result["what"], result["backend"]
        for size, record in zip(result["sizes"], result["records"], strict=True):
            if "error" in record:
                rows.append((what, backend, str(size), record["error"], "-"))
                continue
            memory = f"{record['memory_gib'] * 1024:.0f}"
            rows.append((what, backend, str(size), f"{record['seconds']['median']:.3g}", memory))
        exponents = [result["seconds_exponent"], result["memory_exponent"]]
        rows.append((what, backend, "exponent", *("-" if value is None else f"{value:.1f}" for value in exponents)))
    return format_columns(rows)


def run(args: argparse.Namespace) -> int:
    """Run `pgat-fast bench scaling`: print and write the figures. Returns 1 if a size failed."""
    specs = given(parse_specs, "--backends", args.backends)
    for spec in specs:
        configure(spec, QUICKSTART, args.overrides)
    results: list[Record] = []
    for what in args.what:
        sizes = SIZES[what]
        chosen = [size for size in sizes if args.largest is None or size <= args.largest]
        records: dict[str, list[Record]] = {str(spec): [] for spec in specs}
        for size in chosen:
            for spec in specs:
                print(f"{what} {size}: {spec}", file=sys.stderr, flush=True)
                task: dict[str, Any] = {"spec": asdict(spec), "what": what, "size": size}
                records[str(spec)].append(run_task(MODULE, task | {"overrides": args.overrides}, TIME_LIMIT))
        for name, backend_records in records.items():
            results.append(summarize(what, name, chosen, backend_records))
    print(as_table(results))
    settings = {
        "overrides": args.overrides,
        "repeats": REPEATS,
        "days_of_batch": DAYS,
        "timesteps_of_bodies": TIMESTEPS,
    }
    write(args.json, MODULE, {"settings": settings, "results": results})
    return int(any("error" in record for result in results for record in result["records"]))


def main() -> int:
    """Run a process that measures."""
    return do_task(measure, sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
