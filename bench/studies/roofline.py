"""Roofline of this machine, measured, and how near each operator comes to it.

    pgat-fast bench roofline --json bench/results/MACHINE/DATE/roofline.json

The roofs are the best matrix product (`bench.matrix_peak`) and the best bandwidth of copying and adding. A point is a
forward and a backward pass: of an operator with a kernel (`bench.gpu.kernel_cases`; `plain` is autograd of its formulas
in plain torch, with the exact float32 products of training), or of a combiner. Widths are those of production; on a CPU
there are few timesteps. FLOPs are the useful ones: recomputed ones count once. Bytes are the unavoidable ones: every
input, result and gradient once, without intermediate results, so that the fraction also shows how much fusing could
gain. Times are the shortest, as for the roofs; data that stays in a cache may lie above the roof of the bandwidth.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from bench.backend_spec import PRODUCTION, BackendSpec, configure, given, parse_specs
from bench.gpu.kernel_cases import CASES, DTYPES, Case, gradient, results
from bench.matrix_peak import matrix_peak
from bench.measure import count
from bench.processes import write
from bench.result_files import Record
from bench.studies.combiner import combiner_of, count_passes, random_inputs, run_pass
from bench.suite import TIMESTEPS
from bench.timing import shortest
from pgat_fast.model.precision import Precision, float32_products_in
from pgat_fast.utils.device import resolve_device
from pgat_fast.utils.table import format_columns
from pgat_kernels.dispatch import why_no_kernels

ELEMENTS: Final = {"cpu": 2**26, "cuda": 2**28}
"""Device -> float32 elements of the arrays for the bandwidth: far more than fit into a cache."""
SECONDS: Final = 0.5
"""Seconds for which a point is measured, at least three times."""
PRECISIONS: Final[dict[str, Precision]] = {"fp32": "highest", "bf16": "bf16"}
"""dtype of an operator -> precision of a model."""
COMBINER_TIMESTEPS: Final = {"cpu": 16, "cuda": 250}


def bandwidth(device: torch.device, seconds: float = 0.5) -> Record:
    """Return the rates of `copy` and `add` (two in, one out), and the better one as `bytes_per_second`."""
    x, y, out = (torch.ones(ELEMENTS[device.type], device=device) for _ in range(3))
    ways: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "copy": (2, lambda: out.copy_(x)),
        "add": (3, lambda: torch.add(x, y, out=out)),
    }
    rates = {name: arrays * x.nbytes / shortest(run, seconds, device) for name, (arrays, run) in ways.items()}
    return {"bytes_per_second": max(rates.values()), **rates}


def operator_points(device: torch.device, dtype: str) -> Iterator[Record]:
    """Yield a point for every operator with kernels: in plain torch, and by its kernel where that runs."""
    for case in CASES:
        if case.operator == "gru_bank" and case.threshold:  # it recomputes; the case that keeps its gates is measured
            continue
        case_dtype = dtype if dtype in case.dtypes else "fp32"
        for by in ("plain", "kernels"):
            kernels = by == "kernels"
            if kernels and why_no_kernels(device, DTYPES[case_dtype]):
                continue
            labels = {"what": case.operator, "shape": case.shape, "by": by, "dtype": case_dtype}
            yield labels | _operator(case, case_dtype, kernels, device)


def _operator(case: Case, dtype: str, kernels: bool, device: torch.device) -> Record:
    timesteps = TIMESTEPS["production" if device.type == "cuda" else "small"]
    leaves = [x.requires_grad_() for x in case.leaves(DTYPES[dtype], device, timesteps)]
    flops = count(lambda: case.run(leaves, False)).flops
    y = case.run(leaves, kernels).detach()
    g = gradient(y)

    def both() -> None:
        with float32_products_in(PRECISIONS[dtype], device):
            results(case, leaves, kernels, g)

    return {"timesteps": timesteps} | _measured(both, flops, [*leaves, y], device)


def combiner_points(device: torch.device, dtype: str, specs: Sequence[BackendSpec]) -> Iterator[Record]:
    """Yield a point for both combiners by every backend, eager; FLOPs are the reference's without recomputation."""
    precision = PRECISIONS[dtype]
    for name, path in PRODUCTION.items():
        for spec in specs:
            config = configure(spec, path, [f"run.precision={precision}"])
            combiner = combiner_of(config, spec).to(device)
            timesteps = COMBINER_TIMESTEPS[device.type]
            inputs = random_inputs(config, 1, timesteps, device)
            useful = count_passes(config, BackendSpec("reference", precision, kept=True), 1, [timesteps])["counts"][0]
            both = partial(run_pass, combiner, inputs, precision, device)
            moved = [*combiner.parameters(), *inputs.adjacencies, inputs.context, inputs.gradient]
            labels = {"what": "combiner", "shape": name, "by": str(spec), "dtype": dtype}
            yield labels | {"timesteps": timesteps} | _measured(both, useful["flops"], moved, device)


def _measured(run: Callable[[], None], flops: int, moved: Sequence[Tensor], device: torch.device) -> Record:
    """Return the shortest seconds of `run`, its FLOPs, and the bytes of tensors and their gradients."""
    return {
        "seconds": shortest(run, SECONDS, device),
        "flops": flops,
        "bytes": 2 * sum(x.nbytes for x in moved),
    }


def fraction_of_roof(point: Record, peak: float, bytes_per_second: float) -> float:
    """Return the minimum time that the roofs allow, divided by the measured time."""
    return float(max(point["flops"] / peak, point["bytes"] / bytes_per_second) / point["seconds"])


def as_table(points: Sequence[Record]) -> str:
    """Return the points as a table."""
    rows = [("operator", "shape", "by", "dtype", "ms", "GFLOP/s", "FLOP a byte", "of the roof")]
    for point in points:
        labels = [point[key] for key in ("what", "shape", "by", "dtype")]
        rows.append(
            (
                *labels,
                f"{1e3 * point['seconds']:.3g}",
                f"{point['flops'] / point['seconds'] / 1e9:.3g}",
                f"{point['flops'] / point['bytes']:.3g}",
                f"{point['fraction_of_roof']:.0%}",
            )
        )
    return format_columns(rows)


def run(args: argparse.Namespace) -> int:
    """Run `pgat-fast bench roofline`: print and write the roofs and the points. Returns 0."""
    device = resolve_device(args.device)
    dtype = "bf16" if device.type == "cuda" else "fp32"
    specs = given(parse_specs, "--backends", args.backends)
    peaks = {name: matrix_peak(PRECISIONS[name], device) for name in sorted({"fp32", dtype})}
    memory = bandwidth(device)
    points = [*operator_points(device, dtype), *combiner_points(device, dtype, specs)]
    for point in points:
        peak = peaks[point["dtype"]]["flop_per_second"]
        point["fraction_of_roof"] = fraction_of_roof(point, peak, memory["bytes_per_second"])
    print(f"{memory['bytes_per_second'] / 1e9:.3g} GB/s of memory, products at", end=" ")
    print(", ".join(f"{peak['flop_per_second'] / 1e9:.4g} GFLOP/s in {name}" for name, peak in peaks.items()))
    print(as_table(points))
    record = {"device": device.type, "matrix_peak": peaks, "bandwidth": memory, "points": points}
    write(args.json, "bench.studies.roofline", record)
    return 0
