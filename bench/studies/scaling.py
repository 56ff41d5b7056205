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
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from bench.backend_spec import Variant, configure, given, parse_variants
from bench.compare import CONFIG
from bench.measure import PeakMemory, quartiles, seconds_of
from bench.processes import Record, do_task, run_task, write
from bench.step import TrainedModel
from bench.studies.combiner import combiner_of, random_inputs, run_pass
from pgat_fast.model.precision import resolve_precision
from pgat_fast.utils.device import resolve_device
from pgat_fast.utils.system import GIB

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
    variant, size = Variant(**task["variant"]), task["size"]
    grows = {"history": [f"model.seq_len={size}"], "batch": [f"model.seq_len={DAYS}"]}
    config = configure(variant, CONFIG, [*task["overrides"], *grows.get(task["what"], [])])
    if task["what"] == "bodies":
        device = resolve_device(config.run.device)
        precision = resolve_precision(config.run.precision, device)
        torch.manual_seed(config.training.seed)
        memory = PeakMemory(device)
        combiner = combiner_of(config, variant).to(device)
        inputs = random_inputs(config, 1, TIMESTEPS, device, nodes=size)
        run: Callable[[], None] = lambda: run_pass(combiner, inputs, precision, device)  # noqa: E731
        seconds_of(run, 1, device)
        timing = timed(lambda: seconds_of(run, REPEATS, device))
        return {**timing, "memory_gib": memory.above_baseline() / GIB}
    trained = TrainedModel(config, variant, size if task["what"] == "batch" else 1)
    timing = timed(lambda: trained.seconds_of(REPEATS))
    return {**timing, "memory_gib": trained.record()["peak_memory_gib"]}


def timed(run: Callable[[], list[float]]) -> Record:
    """Return quartiles of the seconds that `run` returns, and the system's share of the processor time meanwhile."""
    before = os.times()
    seconds = quartiles(run())
    user, system = (getattr(os.times(), name) - getattr(before, name) for name in ("user", "system"))
    return {"seconds": seconds, "system_share": system / (user + system) if user + system else 0.0}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Return the exponent of the best power law with a constant, by least squares of relative errors.

    Neither constant nor factor is negative. Returns None for fewer than three sizes.
    """
    if len(sizes) < 3:
        return None
    x, y = np.asarray(sizes, dtype=float) / max(sizes), np.asarray(values, dtype=float)
    best, least = None, np.inf
    for power in np.arange(0.1, 8.01, 0.05):
        columns = np.stack((np.ones_like(x), x**power), axis=1) / y[:, None]
        coefficients = np.linalg.lstsq(columns, np.ones_like(y), rcond=None)[0]
        if coefficients[0] < 0:  # fit again without a constant
            coefficients = np.array([0.0, columns[:, 1].sum() / (columns[:, 1] ** 2).sum()])
        error = float(((columns @ coefficients - 1) ** 2).sum())
        if coefficients[1] > 0 and error < least:
            best, least = float(power), error
    return best


def summarize(what: str, backend: str, sizes: Sequence[int], records: Sequence[Record]) -> Record:
    """Return the figures of one backend as one quantity grows."""
    result: Record = {"what": what, "backend": backend, "sizes": list(sizes), "records": list(records)}
    succeeded = [(size, record) for size, record in zip(sizes, records, strict=True) if "error" not in record]
    for name, value in (
        ("seconds", lambda record: record["seconds"]["median"]),
        ("memory", lambda record: record["memory_gib"]),
    ):
        result[f"{name}_exponent"] = exponent(
            [size for size, _ in succeeded], [value(record) for _, record in succeeded]
        )
    return result


def describe(result: Record) -> str:
    """Return a line of text per size, and the exponents."""
    lines = [f"{result['what']}, {result['backend']}:"]
    for size, record in zip(result["sizes"], result["records"], strict=True):
        formatted = record.get("error") or f"{record['seconds']['median']:.3g} s, {record['memory_gib'] * 1024:.0f} MiB"
        lines.append(f"  {size:>5}  {formatted}")
    powers = [result["seconds_exponent"], result["memory_exponent"]]
    formatted = ["not known" if power is None else f"{power:.1f}" for power in powers]
    return "\n".join([*lines, f"  exponent of time {formatted[0]}, of memory {formatted[1]}"])


def run(args: argparse.Namespace) -> int:
    """Run `pgat-fast bench scaling`: print and write the figures. Returns 1 if a size failed."""
    variants = given(parse_variants, "--backends", args.backends)
    for variant in variants:
        configure(variant, CONFIG, args.overrides)
    results: list[Record] = []
    for what in args.what:
        sizes = SIZES[what]
        chosen = [size for size in sizes if args.largest is None or size <= args.largest]
        records: dict[str, list[Record]] = {str(variant): [] for variant in variants}
        for size in chosen:
            for variant in variants:
                print(f"{what} {size}: {variant}", file=sys.stderr, flush=True)
                task: dict[str, Any] = {"variant": asdict(variant), "what": what, "size": size}
                records[str(variant)].append(run_task(MODULE, task | {"overrides": args.overrides}, TIME_LIMIT))
        for name, backend_records in records.items():
            results.append(summarize(what, name, chosen, backend_records))
            print(describe(results[-1]), flush=True)
    settings = {
        "overrides": args.overrides,
        "repeats": REPEATS,
        "days_of_batch": DAYS,
        "timesteps_of_bodies": TIMESTEPS,
    }
    write(Path(args.json) if args.json else None, MODULE, {"settings": settings, "results": results})
    return int(any("error" in record for result in results for record in result["records"]))


def main() -> int:
    """Run a process that measures."""
    return do_task(measure, sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
