"""Cost of communication in training on several devices: a model on paper, and a check of it on this machine.

    pgat-fast bench ranks --json bench/results/MACHINE/DATE/ranks.json

On paper (a model, not a measurement): a step on N GPUs takes the time of a step of one GPU at its share of the batch
(`bench.gpu.cost_model`: kernels, products and all other operations of torch unfused, in 16 bits) and of the
communication:

- The gradients: one ring all-reduce, float32: 2 (N - 1) / N of their bytes through the slowest link, and 2 (N - 1)
  messages (Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, 2009). None of it overlaps with the backward
  pass, as for a compiled model, whose gradients arrive together; in eager mode most of it overlaps.
- The loss: one number, in a tree of 2 log2 N messages. The stop flags, four bytes over gloo, are left out.

`LINKS` lists the links. `weak` keeps the batch of each GPU, `strong` the total batch.

The check: processes on this machine all-reduce numbers over gloo. Seconds per message and bytes per second are fitted
to two processes. They predict the times of more processes, and of training steps of the quickstart's model, which are
measured too. With more processes than cores, the computation of a step is predicted to take longer by their ratio.
"""

import argparse
import json
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bench.processes import do_task, run_task, write
from bench.result_files import ROOT, Record
from pgat_fast.utils.cores import usable_cores
from pgat_fast.utils.table import format_columns

if TYPE_CHECKING:
    from pgat_fast.distributed.process_group import SingleProcess

MODULE: Final = "bench.studies.ranks"
CONFIGS: Final = ("configs/production_batched.yaml", "configs/celestial_enhanced_pgat_production.yaml")
GPU: Final = "H100"
BATCH: Final = 16
"""Batch of each GPU for `weak`, total batch for `strong`."""
GPUS: Final = (1, 2, 4, 8, 16, 32, 64)


class Link(NamedTuple):
    """Link between GPUs, in one direction. Source: the makers' data sheets; latencies are typical ones of NCCL."""

    most: int
    """Maximum number of GPUs that it connects."""
    seconds: float
    """Latency of a message, in seconds."""
    bandwidth: float
    """Bytes per second."""


LINKS: Final = (Link(8, 5e-6, 450e9), Link(64, 20e-6, 50e9))
"""NVLink within a node of eight; between nodes one 400 Gb/s adapter per GPU."""

SIZES: Final = (2**12, 2**16, 2**20, 2**23, 2**25)
"""Bytes that the check all-reduces; the largest size is about that of all gradients of the model."""
PROCESSES: Final = (2, 3, 4)
REPEATS: Final = 7
STEP_CONFIG: Final = "configs/quickstart.yaml"
STEP_BATCH: Final = 4
"""Windows of each process."""
STEPS: Final = 15


def all_reduce_seconds(count: int, size: float, seconds: float, bandwidth: float) -> float:
    """Return the seconds of a ring all-reduce of `size` bytes among `count` ranks."""
    return 2 * (count - 1) * seconds + 2 * (count - 1) / count * size / bandwidth if count > 1 else 0.0


def communication(count: int, size: float, seconds: float, bandwidth: float) -> float:
    """Return the seconds of communication in a step of `count` ranks, none of it overlapped with computation.

    Args:
        count: number of ranks.
        size: bytes of all gradients.
        seconds: latency of a message.
        bandwidth: bytes per second.
    """
    loss = 2 * math.ceil(math.log2(count)) * seconds
    return loss + all_reduce_seconds(count, size, seconds, bandwidth)


def efficiencies(steps: Mapping[int, float], gradient_bytes: int) -> list[Record]:
    """Return, for every number of GPUs, windows per second over those of one, as a fraction of that number.

    Args:
        steps: windows of one GPU -> seconds of its step.
        gradient_bytes: bytes of the gradients of all parameters.
    """
    rows = []
    for count in GPUS:
        link = next(link for link in LINKS if count <= link.most)
        overhead = communication(count, gradient_bytes, link.seconds, link.bandwidth)
        divided = count * (steps[max(1, BATCH // count)] + overhead)
        rows.append(
            {
                "gpus": count,
                "seconds": overhead,
                "weak": steps[BATCH] / (steps[BATCH] + overhead),
                "strong": steps[BATCH] / divided if count <= BATCH else None,
            }
        )
    return rows


KINDS: Final = ("weak", "strong")


def on_paper(task: Record) -> Record:
    """Return the model for one configuration; runs in a process of its own."""
    from bench.backend_spec import BackendSpec, build
    from bench.gpu.cost_model import GPUS as KNOWN
    from bench.gpu.cost_model import table, totals, work_of_a_step
    from pgat_fast import load_config

    config = load_config(str(ROOT / task["config"]))
    gpu = next(gpu for gpu in KNOWN if gpu.name == GPU)
    model = build(config, BackendSpec("torch"))
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    shares = sorted({max(1, BATCH // count) for count in GPUS})
    steps = {
        share: totals(table(work_of_a_step(config, "bf16", share, gpu.architecture), gpu))["seconds"]
        for share in shares
    }
    rows = efficiencies(steps, size)
    return {
        "config": task["config"],
        "gradient_bytes": size,
        "step_seconds": {str(share): seconds for share, seconds in steps.items()},
        "rows": rows,
    }


# --- the check --------------------------------------------------------------------------------------------------------


def add_up(group: "SingleProcess") -> list[float]:
    """Return the median seconds of an all-reduce of each of `SIZES`; runs in every rank."""
    import torch
    from torch import distributed

    medians = []
    for size in SIZES:
        numbers = torch.ones(size // 4)
        timings = []
        for _ in range(2 + REPEATS):
            distributed.barrier()
            started = time.perf_counter()
            distributed.all_reduce(numbers)
            timings.append(time.perf_counter() - started)
        medians.append(statistics.median(timings[2:]))
    return medians


def take_steps(group: "SingleProcess") -> list[float]:
    """Return the median seconds of a training step, and the bytes of all gradients; runs in every rank."""
    import torch

    from bench.backend_spec import BackendSpec, build
    from bench.step import optimizer_step
    from pgat_fast import load_config
    from pgat_fast.data.windows import example

    torch.manual_seed(0)
    cpu, config = torch.device("cpu"), load_config(str(ROOT / STEP_CONFIG))
    model = build(config, BackendSpec("torch"))
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    step = optimizer_step(model, config, "highest", cpu, group=group)
    inputs = example(config.model, STEP_BATCH)
    timings = []
    for _ in range(3 + STEPS):
        started = time.perf_counter()
        step.apply(step.accumulate([lambda: inputs]), 1)
        group.all_gather_requests(None)
        timings.append(time.perf_counter() - started)
    return [statistics.median(timings[3:]), size]


def work(rank: int, count: int, port: int, file: str, function: Callable[["SingleProcess"], list[float]]) -> None:
    """Call `function` in a process with one thread, `rank` of `count`; the first rank writes the result to `file`."""
    import torch

    from pgat_fast.distributed.process_group import process_group

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(count)}
    with process_group(torch.device("cpu"), 60.0) as group:
        result = function(group)
        if group.is_main:
            Path(file).write_text(json.dumps(result), encoding="utf-8")


def measure(count: int, function: Callable[["SingleProcess"], list[float]] = add_up) -> list[float]:
    """Return what `function` returns in the first of `count` ranks."""
    from torch.multiprocessing.spawn import spawn

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "result")
        spawn(work, (count, port, file, function), nprocs=count)
        result: list[float] = json.loads(Path(file).read_text(encoding="utf-8"))
    return result


def fit(count: int, seconds: Sequence[float]) -> tuple[float, float]:
    """Return seconds per message and bytes per second, by least squares of relative errors."""
    columns = np.array([[2 * (count - 1), 2 * (count - 1) / count * size] for size in SIZES])
    weights = 1 / np.asarray(seconds)
    message, byte = np.linalg.lstsq(columns * weights[:, None], np.ones(len(SIZES)), rcond=None)[0]
    return float(message), float(1 / byte)


def check(task: Record) -> Record:
    """Measure all-reduces, fit to the fewest processes, and predict the others."""
    measured = {count: measure(count) for count in PROCESSES}
    seconds, bandwidth = fit(PROCESSES[0], measured[PROCESSES[0]])
    rows = [
        {
            "processes": count,
            "bytes": size,
            "seconds": actual,
            "predicted": all_reduce_seconds(count, size, seconds, bandwidth),
        }
        for count, size, actual in ((c, s, t) for c in PROCESSES for s, t in zip(SIZES, measured[c], strict=True))
    ]
    return {
        "seconds_a_message": seconds,
        "bytes_per_second": bandwidth,
        "all_reduce": rows,
        "config": STEP_CONFIG,
        "batch": STEP_BATCH,
        "cores": usable_cores(),
        "steps": check_steps(seconds, bandwidth),
    }


def check_steps(seconds: float, bandwidth: float) -> list[Record]:
    """Measure training steps of one process and of several; predict the latter from the former and the fit."""
    single_seconds, size = measure(1, take_steps)
    rows: list[Record] = [{"processes": 1, "seconds": single_seconds, "predicted": single_seconds}]
    for count in PROCESSES:
        predicted = single_seconds * max(1.0, count / usable_cores()) + communication(count, size, seconds, bandwidth)
        rows.append({"processes": count, "seconds": measure(count, take_steps)[0], "predicted": predicted})
    return rows


def as_text(papers: Sequence[Record], check: Record) -> str:
    """Return the model and the check as text."""
    parts = ["On paper (a model, not a measurement):"]
    for paper in papers:
        rows = [["GPUs", "communication, ms", f"{BATCH} windows each", f"{BATCH} in all"]]
        for row in paper["rows"]:
            fractions = ["-" if row[kind] is None else f"{row[kind]:.0%}" for kind in KINDS]
            rows.append([str(row["gpus"]), f"{1e3 * row['seconds']:.2f}", *fractions])
        parts.append(f"{paper['config']}: {paper['gradient_bytes'] / 1e6:.1f} MB of gradients a step")
        parts.append(format_columns(rows))
    steps = f"training steps of {STEP_CONFIG}, {STEP_BATCH} windows and one thread for each process"
    for title, key in (("all-reduce over gloo on this machine", "all_reduce"), (steps, "steps")):
        rows = [["processes", "bytes", "measured, ms", "predicted, ms"]]
        for row in check[key]:
            milliseconds = [f"{1e3 * row[name]:.2f}" for name in ("seconds", "predicted")]
            rows.append([str(row["processes"]), str(row.get("bytes", "-")), *milliseconds])
        parts += [f"{title}:", format_columns(rows)]
    return "\n\n".join(parts)


def run(args: argparse.Namespace) -> int:
    """Run `pgat-fast bench ranks`: print and write the model and the check. Returns 1 if one failed."""
    papers = [run_task(MODULE, {"config": config}, 600) for config in CONFIGS]
    checked = run_task(MODULE, {}, 600)
    failed = [record["error"] for record in (*papers, checked) if "error" in record]
    if failed:
        print("\n".join(failed), file=sys.stderr)
        return 1
    print(as_text(papers, checked))
    assumptions = {"gpu": GPU, "batch": BATCH, "links": [link._asdict() for link in LINKS]}
    result = {"is": "a model, but for the check", "assumptions": assumptions, "on_paper": papers, "check": checked}
    write(args.json, MODULE, result)
    return 0


def main() -> int:
    """Run a process that computes or measures."""
    return do_task(lambda task: on_paper(task) if task else check(task), sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
