"""Benchmark of the combiner alone, forward and backward, as the history grows: linearity, and fraction of the peak.

    python -m bench.studies.combiner --combiner batched --steps 125,250,500,1000 --json OUT
    python -m bench.studies.combiner --combiner hierarchical --backends torch:bf16 --steps 250

Its sizes are those of the production configuration (or of `--config`); it is taken from a model that the backend has
built. Inputs are random. `bench.backend_spec` lists the words that may follow a backend's name. Each backend at each
number of steps runs in processes of its own, which take turns for `--rounds` rounds. Per backend and number of steps:

- `seconds`: quartiles of forward and backward pass after a warm-up of two.
- `peak_memory_gib`: the peak of the process (on CUDA: of the allocator) in the timed passes above what it held after an
  eager pass over one timestep: without libraries, parameters and their gradients, with compiled code.
- `saved_for_backward_bytes`, `executed_flops`: counted by `bench.measure.count`; recomputation counts as executed.
- `useful_flops`: FLOPs of the reference's combiner without recomputation, for every backend.
- `fraction_of_matrix_peak`: both kinds of FLOPs per second, relative to the best matrix product of the same precision
  that any of the processes measured (`bench.matrix_peak`).

`lines`: the least-squares lines through the origin of time, memory and saved bytes against the steps, and the largest
deviation from them, in percent of the line: positive where the cost is above the line. A constant part makes small
sizes lie above the line.
"""

import operator
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from bench.backend_spec import PRODUCTION, BackendSpec, build, compile_module, configure, is_compiled, parse_specs
from bench.matrix_peak import best_peaks, matrix_peak
from bench.measure import PeakMemory, count, forget_data, state_of, without_data
from bench.processes import add_turns, do_task, make_parser, positive, run_task, take_turns, write
from bench.result_files import Record
from bench.timing import quartiles, seconds_of
from pgat_fast.config.schema import Config
from pgat_fast.errors import PgatError
from pgat_fast.model.precision import Precision, float32_products_in, products_in, resolve_precision
from pgat_fast.utils.device import resolve_device
from pgat_fast.utils.system import GIB
from pgat_fast.utils.table import format_columns

MODULE: Final = "bench.studies.combiner"

MEMORY: Final = ("peak_memory_gib", "baseline_memory_gib")
WARM_UP: Final = 2
"""Warm-up passes; the second absorbs any compilation that the first left over."""


class Inputs(NamedTuple):
    """Arguments of a combiner, and the gradient of its result."""

    adjacencies: tuple[Tensor, Tensor, Tensor]
    context: Tensor
    gradient: Tensor


# --- in a process of one backend --------------------------------------------------------------------------------------


def measure(task: Record) -> Record:
    """Run the task of one process: count or time, as its `kind` says."""
    spec = BackendSpec(**task["spec"])
    config = configure(spec, task["config"], task["overrides"])
    if task["kind"] == "count":
        return count_passes(config, spec, task["batch"], task["sizes"])
    return time_passes(config, spec, task["batch"], task["steps"], task["repeats"], task["peak_seconds"])


def count_passes(config: Config, spec: BackendSpec, batch: int, sizes: list[int]) -> Record:
    """Count forward and backward pass at every size on tensors without data; `counts` has one record per size."""
    precision = resolve_precision(config.run.precision, resolve_device(config.run.device))
    device = torch.device("cpu")
    counts = []
    combiner = combiner_of(config, spec)
    with without_data():
        forget_data(combiner)
        for steps in sizes:
            inputs = random_inputs(config, batch, steps, device)

            def forward(inputs: Inputs = inputs) -> Tensor:
                with products_in(precision, device):
                    combined: Tensor = combiner(inputs.adjacencies, inputs.context)
                return combined

            counts.append(count(forward, [*state_of(combiner), *inputs.adjacencies, inputs.context]).record())
    return {"counts": counts}


def time_passes(config: Config, spec: BackendSpec, batch: int, steps: int, repeats: int, peak_seconds: float) -> Record:
    """Return the seconds of `repeats` passes after the warm-up, their peak memory, and the peak of products."""
    device = resolve_device(config.run.device)
    precision = resolve_precision(config.run.precision, device)
    torch.manual_seed(config.training.seed)
    compiled = is_compiled(config, spec, device)
    combiner = combiner_of(config, spec, compiled).to(device)
    run_pass(combiner, random_inputs(config, batch, 1, device), precision, device)
    memory = PeakMemory(device)
    if compiled:
        compile_module(combiner, spec, device)
    inputs = random_inputs(config, batch, steps, device)

    def run() -> None:
        run_pass(combiner, inputs, precision, device)

    warm_up = seconds_of(run, WARM_UP, device)
    memory.forget()
    seconds = seconds_of(run, repeats, device)
    record: Record = {
        "precision": precision,
        "compiled": compiled,
        "warm_up_seconds": sum(warm_up),
        "seconds": seconds,
        "peak_memory_gib": memory.above_baseline() / GIB,
        "baseline_memory_gib": memory.baseline / GIB,
    }
    return record | {"matrix_peak": matrix_peak(precision, device, peak_seconds)}


def combiner_of(config: Config, spec: BackendSpec, compiled: bool = False) -> nn.Module:
    """Return the combiner of the model that `build` returns."""
    return build(config, spec, compiled).get_submodule("graph_builder.combiner")


def random_inputs(config: Config, batch: int, steps: int, device: torch.device, *, nodes: int | None = None) -> Inputs:
    """Return random inputs in a combiner's usual ranges, for `nodes` bodies; they require gradients."""
    nodes, width = nodes or config.model.nodes, config.model.embed_dim
    shape = (batch, steps, nodes, nodes)
    static, dynamic = (torch.rand(shape, device=device, requires_grad=True) for _ in range(2))
    learned = torch.empty(shape, device=device).uniform_(-1, 1).requires_grad_()
    context = torch.randn(batch, steps, width, device=device, requires_grad=True)
    return Inputs((static, learned, dynamic), context, torch.randn(shape, device=device))


def run_pass(combiner: nn.Module, inputs: Inputs, precision: Precision, device: torch.device) -> None:
    """Run a forward and a backward pass as in training, after clearing the gradients of the previous one."""
    for tensor in (*combiner.parameters(), *inputs.adjacencies, inputs.context):
        tensor.grad = None
    with products_in(precision, device):
        combined = combiner(inputs.adjacencies, inputs.context)
    with float32_products_in(precision, device):
        combined.backward(inputs.gradient.to(combined.dtype))


# --- all backends -----------------------------------------------------------------------------------------------------


def summarize(
    steps: int, rounds: list[Record], counts: Record, useful: Record, peaks: Mapping[Precision, Record]
) -> Record:
    """Return the figures of one backend at one size; `peaks` are those of `best_peaks`."""
    errors = [record["error"] for record in rounds if "error" in record]
    if errors:
        return {"steps": steps, "error": errors[0]}
    seconds = quartiles([value for record in rounds for value in record["seconds"]])
    peak = peaks[rounds[0]["precision"]]["flop_per_second"]
    flops = {"useful": useful["flops"], "executed": counts["flops"]}
    return {
        "steps": steps,
        "seconds": seconds,
        "warm_up_seconds": rounds[0]["warm_up_seconds"],
        "round_medians": [statistics.median(record["seconds"]) for record in rounds],
        **{key: statistics.median(record[key] for record in rounds) for key in MEMORY},
        "saved_for_backward_bytes": counts["saved_for_backward_bytes"],
        **{f"{kind}_flops": count for kind, count in flops.items()},
        "fraction_of_matrix_peak": {kind: count / seconds["median"] / peak for kind, count in flops.items()},
    }


def fit_line(sizes: Sequence[float], values: Sequence[float]) -> Record:
    """Fit the least-squares line through the origin to `values`, at least one of which is positive.

    Returns:
        `slope`; `deviations_percent` of every value from the line, in percent of the line; and the
        `largest_deviation_percent`, with its sign.
    """
    slope = sum(map(operator.mul, sizes, values)) / sum(size**2 for size in sizes)
    deviations = [100 * (value / (slope * size) - 1) for size, value in zip(sizes, values, strict=True)]
    return {
        "slope": slope,
        "deviations_percent": deviations,
        "largest_deviation_percent": max(deviations, key=abs),
    }


def lines_of(sizes: list[Record]) -> Record:
    """Return the lines through the origin of the costs at all sizes that did not fail."""
    succeeded = [size for size in sizes if "error" not in size]
    steps = [size["steps"] for size in succeeded]
    values = {"seconds": [size["seconds"]["median"] for size in succeeded]}
    values |= {key: [size[key] for size in succeeded] for key in ("peak_memory_gib", "saved_for_backward_bytes")}
    return {name: fit_line(steps, costs) for name, costs in values.items() if any(costs)}


def as_table(results: list[Record]) -> str:
    """Return all results as a table."""
    rows = [("backend", "steps", "seconds", "peak memory", "saved for backward", "useful, of the peak", "executed")]
    for result in results:
        for size in result["sizes"]:
            if "error" in size:
                rows.append((result["backend"], str(size["steps"]), size["error"], *"----"))
                continue
            rows.append(
                (
                    result["backend"],
                    str(size["steps"]),
                    f"{size['seconds']['median']:.3g}",
                    f"{size['peak_memory_gib']:.3g} GiB",
                    f"{size['saved_for_backward_bytes'] / 1e9:.3g} GB",
                    f"{size['fraction_of_matrix_peak']['useful']:.1%}",
                    f"{size['fraction_of_matrix_peak']['executed']:.1%}",
                )
            )
    return format_columns(rows)


def parse_sizes(text: str) -> list[int]:
    """Parse a comma-separated list of positive integers, sorted without duplicates. Raises ArgumentTypeError."""
    return sorted({positive(part) for part in text.split(",")})


def main() -> int:
    """Run the benchmark, or one of its processes. Returns 1 if a size failed."""
    if sys.argv[1:2] == ["--task"]:
        return do_task(measure, sys.argv[2])
    parser = make_parser(__doc__)
    parser.add_argument("--combiner", choices=PRODUCTION, required=True)
    parser.add_argument("--config", help="default: the production configuration of this combiner")
    parser.add_argument(
        "--backends", type=parse_specs, default=parse_specs("reference,torch"), metavar="NAME[:WORD...],..."
    )
    parser.add_argument("--steps", type=parse_sizes, default=[125, 250, 500, 1000], help="lengths of the history")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=5, help="passes to time in each process (default: 5)")
    add_turns(parser)
    args = parser.parse_args()
    file = args.config or PRODUCTION[args.combiner]
    overrides = [*args.overrides, f"model.combiner={args.combiner}"]
    try:
        for spec in args.backends:
            configure(spec, file, overrides)
    except PgatError as error:
        parser.error(str(error))

    def task(kind: str, spec: BackendSpec, **more: Any) -> Record:
        return {"kind": kind, "spec": asdict(spec), "config": file, "overrides": overrides, "batch": args.batch} | more

    without_recomputation = BackendSpec("reference", "highest", kept=True)
    # Compiling does not change the counts.
    counted_specs = dict.fromkeys([without_recomputation, *(replace(spec, compiled=None) for spec in args.backends)])
    counted = {spec: run_task(MODULE, task("count", spec, sizes=args.steps), args.time_limit) for spec in counted_specs}
    errors = [record["error"] for record in counted.values() if "error" in record]
    if errors:
        print(f"FLOPs cannot be counted: {errors[0]}", file=sys.stderr)
        return 1
    options = {"repeats": args.repeats, "peak_seconds": args.peak_seconds}
    tasks = {
        f"{spec}, {steps} steps": task("time", spec, steps=steps, **options)
        for steps in args.steps
        for spec in args.backends
    }
    timed, order = take_turns(MODULE, tasks, args.rounds, args.time_limit)
    peaks = best_peaks(record for rounds in timed.values() for record in rounds)

    results: list[Record] = []
    useful = counted[without_recomputation]["counts"]
    for spec in args.backends:
        counts = counted[replace(spec, compiled=None)]["counts"]
        rounds = [timed[f"{spec}, {steps} steps"] for steps in args.steps]
        sizes = [summarize(*figures, peaks) for figures in zip(args.steps, rounds, counts, useful, strict=True)]
        first = rounds[0][0]
        result = {"backend": str(spec), "precision": first.get("precision"), "compiled": first.get("compiled")}
        results.append({**result, "sizes": sizes, "lines": lines_of(sizes)})
    print(as_table(results))
    settings = {"combiner": args.combiner, "batch": args.batch, "repeats": args.repeats, "rounds": args.rounds}
    write(args.json, MODULE, {**settings, "order": order, "matrix_peak": peaks, "results": results})
    return int(any("error" in size for result in results for size in result["sizes"]))


if __name__ == "__main__":
    sys.exit(main())
