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
sizes lie above the line; `with_constant` has the lines with a constant.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bench.backend_spec import Variant, build, compile_module, configure, is_compiled, parse_variants
from bench.matrix_peak import best_peaks, matrix_peak
from bench.measure import (
    PeakMemory,
    count,
    count_saved,
    fit_line,
    forget_data,
    quartiles,
    seconds_of,
    state_of,
    without_data,
)
from bench.processes import Record, add_arguments, do_task, positive, run_task, take_turns, write
from pgat_fast.config.schema import Config
from pgat_fast.errors import PgatError
from pgat_fast.model.precision import Precision, float32_products_in, products_in, resolve_precision
from pgat_fast.utils.device import resolve_device
from pgat_fast.utils.system import GIB

MODULE: Final = "bench.studies.combiner"

_CONFIGS: Final = Path(__file__).resolve().parents[2] / "configs"
PRODUCTION: Final = {
    "batched": str(_CONFIGS / "production_batched.yaml"),
    "hierarchical": str(_CONFIGS / "celestial_enhanced_pgat_production.yaml"),
}

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
    variant = Variant(**task["variant"])
    config = configure(variant, task["config"], task["overrides"])
    match task["kind"]:
        case "count":
            return count_passes(config, variant, task["batch"], task["sizes"])
        case _:
            return time_passes(config, variant, task["batch"], task["steps"], task["repeats"], task["peak_seconds"])


def count_passes(config: Config, variant: Variant, batch: int, sizes: list[int]) -> Record:
    """Count forward and backward pass at every size on tensors without data; `counts` has one record per size."""
    precision = resolve_precision(config.run.precision, resolve_device(config.run.device))
    device = torch.device("cpu")
    counts = []
    combiner = combiner_of(config, variant)
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


def time_passes(config: Config, variant: Variant, batch: int, steps: int, repeats: int, peak_seconds: float) -> Record:
    """Return the seconds of `repeats` passes after the warm-up, their peak memory, and the peak of products."""
    device = resolve_device(config.run.device)
    precision = resolve_precision(config.run.precision, device)
    torch.manual_seed(config.training.seed)
    compiled = is_compiled(config, variant, device)
    combiner = combiner_of(config, variant, compiled).to(device)
    run_pass(combiner, random_inputs(config, batch, 1, device), precision, device)
    memory = PeakMemory(device)
    if compiled:
        compile_module(combiner, variant, device)
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
    if compiled:
        ignored = [*state_of(combiner), *inputs.adjacencies, inputs.context]
        with count_saved(ignored) as saved, products_in(precision, device):
            combiner(inputs.adjacencies, inputs.context)
        record["compiled_saved_for_backward_bytes"] = saved.total
    return record | {"matrix_peak": matrix_peak(precision, device, peak_seconds)}


def combiner_of(config: Config, variant: Variant, compiled: bool = False) -> nn.Module:
    """Return the combiner of the model that `build` returns."""
    return build(config, variant, compiled).get_submodule("graph.combiner")


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


def summarize(steps: int, rounds: list[Record], counts: Record | None, useful: Record | None) -> Record:
    """Return the figures of one backend at one size."""
    errors = [record["error"] for record in rounds if "error" in record]
    if errors:
        return {"steps": steps, "error": errors[0]}
    seconds = quartiles([value for record in rounds for value in record["seconds"]])
    result: Record = {
        "steps": steps,
        "seconds": seconds,
        "warm_up_seconds": rounds[0]["warm_up_seconds"],
        "round_medians": [statistics.median(record["seconds"]) for record in rounds],
        "peak_memory_gib": statistics.median(record["peak_memory_gib"] for record in rounds),
        "baseline_memory_gib": statistics.median(record["baseline_memory_gib"] for record in rounds),
    }
    if "compiled_saved_for_backward_bytes" in rounds[0]:
        result["compiled_saved_for_backward_bytes"] = rounds[0]["compiled_saved_for_backward_bytes"]
    if counts:
        result |= {
            "saved_for_backward_bytes": counts["saved_for_backward_bytes"],
            "executed_flops": counts["flops"],
            "operators_without_flop_formula": counts["operators_without_flop_formula"],
        }
    if useful:
        result["useful_flops"] = useful["flops"]
    return result


def add_fractions(result: Record, peak: float) -> None:
    """Add the fractions of `peak`, in FLOPs per second, to a result of `summarize`."""
    result["fraction_of_matrix_peak"] = {
        kind: result[f"{kind}_flops"] / result["seconds"]["median"] / peak
        for kind in ("useful", "executed")
        if f"{kind}_flops" in result
    }


def lines_of(sizes: list[Record]) -> Record:
    """Return the lines through the origin of the costs at all sizes that did not fail."""
    succeeded = [size for size in sizes if "error" not in size]
    steps = [size["steps"] for size in succeeded]
    values = {
        "seconds": [size["seconds"]["median"] for size in succeeded],
        "peak_memory_gib": [size["peak_memory_gib"] for size in succeeded],
        "saved_for_backward_bytes": [size.get("saved_for_backward_bytes", 0) for size in succeeded],
    }
    return {name: fit_line(steps, costs) for name, costs in values.items() if any(costs)}


def describe_backend(result: Record) -> Iterator[str]:
    """Yield a line of text per size, and one per fitted line."""
    name = result["backend"]
    for size in result["sizes"]:
        if "error" in size:
            yield f"{name}, {size['steps']} steps: {size['error']}"
            continue
        seconds = size["seconds"]
        parts = [
            f"{seconds['median']:.3g} s ({seconds['quartile_1']:.3g} to {seconds['quartile_3']:.3g})",
            f"peak {size['peak_memory_gib']:.3g} GiB above {size['baseline_memory_gib']:.2f} GiB",
        ]
        if "saved_for_backward_bytes" in size:
            parts.append(f"{size['saved_for_backward_bytes'] / 1e9:.3g} GB saved for backward")
        fractions = size["fraction_of_matrix_peak"]
        parts += [
            f"{size[f'{kind}_flops']:.3g} {kind} FLOP, {fraction:.1%} of the peak"
            for kind, fraction in fractions.items()
        ]
        if size.get("operators_without_flop_formula"):
            parts.append(f"FLOPs not counted of {', '.join(size['operators_without_flop_formula'])}")
        yield f"{name}, {size['steps']} steps: " + "; ".join(parts)
    for cost, line in result["lines"].items():
        yield f"{name}: {cost} within {line['largest_deviation_percent']:+.1f} % of {line['slope']:.3g} a step"
    if "count_error" in result:
        yield f"{name}: not counted: {result['count_error']}"


def parse_sizes(text: str) -> list[int]:
    """Parse a comma-separated list of positive integers, sorted without duplicates. Raises ArgumentTypeError."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected positive numbers with commas between them")
    return sorted({int(part) for part in parts})


def main() -> int:
    if sys.argv[1:2] == ["--task"]:
        return do_task(measure, sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--combiner", choices=PRODUCTION, required=True)
    parser.add_argument("--config", help="default: the production configuration of this combiner")
    parser.add_argument(
        "--backends", type=parse_variants, default=parse_variants("reference,torch"), metavar="NAME[:WORD...],..."
    )
    parser.add_argument("--steps", type=parse_sizes, default=[125, 250, 500, 1000], help="lengths of the history")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=5, help="passes to time in each process (default: 5)")
    add_arguments(parser)
    args = parser.parse_args()
    file = args.config or PRODUCTION[args.combiner]
    overrides = [*args.overrides, f"model.combiner={args.combiner}"]
    try:
        for variant in args.backends:
            configure(variant, file, overrides)
    except PgatError as error:
        parser.error(str(error))

    def task(kind: Literal["count", "time"], variant: Variant, **more: Any) -> Record:
        common = {"kind": kind, "variant": asdict(variant), "config": file, "overrides": overrides}
        return common | {"batch": args.batch} | more

    useful = run_task(
        MODULE, task("count", Variant("reference", "highest", kept=True), sizes=args.steps), args.time_limit
    )
    # Compiling does not change the counts.
    counted = {
        variant: run_task(MODULE, task("count", variant, sizes=args.steps), args.time_limit)
        for variant in {replace(variant, compiled=None): None for variant in args.backends}
    }
    tasks = {
        f"{variant}, {steps} steps": task(
            "time", variant, steps=steps, repeats=args.repeats, peak_seconds=args.peak_seconds
        )
        for steps in args.steps
        for variant in args.backends
    }
    timed, order = take_turns(MODULE, tasks, args.rounds, args.time_limit)
    peaks = best_peaks(record for rounds in timed.values() for record in rounds)

    results = []
    for variant in args.backends:
        counts = counted[replace(variant, compiled=None)]
        sizes = []
        for i, steps in enumerate(args.steps):
            rounds = timed[f"{variant}, {steps} steps"]
            size = summarize(
                steps,
                rounds,
                counts["counts"][i] if "counts" in counts else None,
                useful["counts"][i] if "counts" in useful else None,
            )
            if "error" not in size:
                add_fractions(size, peaks[rounds[0]["precision"]]["flop_per_second"])
            sizes.append(size)
        first = next((timed[f"{variant}, {steps} steps"][0] for steps in args.steps), {})
        result: Record = {"backend": str(variant), "precision": first.get("precision")}
        result |= {"compiled": first.get("compiled"), "sizes": sizes, "lines": lines_of(sizes)}
        errors = [count_record["error"] for count_record in (counts, useful) if "error" in count_record]
        result |= {"count_error": errors[0]} if errors else {}
        results.append(result)
        print("\n".join(describe_backend(result)))
    settings = {"combiner": args.combiner, "batch": args.batch, "repeats": args.repeats, "rounds": args.rounds}
    write(args.json, MODULE, {**settings, "order": order, "matrix_peak": peaks, "results": results})
    failed = any("error" in size for result in results for size in result["sizes"])
    return 1 if failed or any("count_error" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
