"""Profile of a training step: a trace for a browser, and a table of the most expensive operators.

    pgat-fast bench profile --config configs/production_batched.yaml --out profile

`trace.json` opens in Perfetto (ui.perfetto.dev) or chrome://tracing. The table has each operator's own time, without
that of operators it calls, as measured by torch's profiler; on a GPU the time of its kernels. FLOPs are those of matrix
products and convolutions, and their fraction is relative to the best product measured here (`bench.matrix_peak`). The
profiler slows small operators down: compare shares, not seconds.
"""

import argparse
import csv
from pathlib import Path
from typing import Any, Final

from torch.profiler import ProfilerActivity, profile

from bench.backend_spec import QUICKSTART, configure, given, parse_spec
from bench.matrix_peak import matrix_peak
from bench.processes import write
from bench.result_files import Record
from bench.step import TrainedModel
from pgat_fast.utils.table import format_columns

PRODUCTS: Final = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_convolution", "aten::conv")
"""Operators (prefixes of their names) whose FLOPs are those of products."""
COLUMNS: Final = ("operator", "calls_per_step", "milliseconds_per_step", "share", "gflop_per_step", "fraction_of_peak")


def operators(events: Any, steps: int, peak: float, cuda: bool) -> list[Record]:
    """Return a record with `COLUMNS` per operator, the most expensive first; unknown values are None."""
    time_attribute = "self_device_time_total" if cuda else "self_cpu_time_total"
    total = sum(getattr(event, time_attribute) for event in events)
    records = []
    for event in sorted(events, key=lambda event: -getattr(event, time_attribute)):
        seconds = getattr(event, time_attribute) / 1e6
        flops = event.flops if event.key.startswith(PRODUCTS) else 0
        has_rate = flops > 0 and seconds > 0
        records.append(
            {
                "operator": event.key,
                "calls_per_step": event.count / steps,
                "milliseconds_per_step": 1e3 * seconds / steps,
                "share": 1e6 * seconds / total if total else 0.0,
                "gflop_per_step": flops / 1e9 / steps if has_rate else None,
                "fraction_of_peak": flops / seconds / peak if has_rate else None,
            }
        )
    return records


def as_table(records: list[Record]) -> str:
    """Return the records as a table."""
    rows = [("operator", "calls", "ms a step", "share", "GFLOP", "of the peak")]
    for record in records:
        flop, fraction = record["gflop_per_step"], record["fraction_of_peak"]
        rows.append(
            (
                record["operator"][:60],
                f"{record['calls_per_step']:g}",
                f"{record['milliseconds_per_step']:.3g}",
                f"{record['share']:.1%}",
                "-" if flop is None else f"{flop:.3g}",
                "-" if fraction is None else f"{fraction:.0%}",
            )
        )
    return format_columns(rows)


def run(args: argparse.Namespace) -> int:
    """Run `pgat-fast bench profile`: write the trace and the table, and print its first ten lines. Returns 0."""
    spec = given(parse_spec, "--backend", args.backend)
    config = configure(spec, args.config or QUICKSTART, args.overrides)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    trained = TrainedModel(config, spec, args.batch)
    cuda = trained.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities, record_shapes=True, with_flops=True) as profiled:
        trained.seconds_of(args.steps)
    peak = matrix_peak(trained.precision, trained.device)["flop_per_second"]
    records = operators(profiled.key_averages(), args.steps, peak, cuda)
    profiled.export_chrome_trace(str(folder / "trace.json"))
    with (folder / "operators.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(records)
    settings = {"config": args.config or QUICKSTART, "overrides": args.overrides, "backend": str(spec)}
    settings |= {"batch": args.batch, "steps": args.steps}
    figures = {"settings": settings, "peak_flop_per_second": peak, "operators": records}
    write(folder / "operators.json", "bench.profile", figures)
    print(as_table(records[:10]))
    print(f"\n{folder}/trace.json opens in ui.perfetto.dev; all operators: {folder}/operators.csv and .json")
    return 0
