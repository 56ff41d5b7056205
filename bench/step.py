"""Whole training steps (forward, backward, clipping, Adam) of several backends: time, memory, FLOPs.

    python -m bench.step --config configs/production_batched.yaml --backends reference,torch --steps 5 --json OUT
    python -m bench.step --config configs/production_batched.yaml --backends reference,torch --batch 16 --steps 0
    python -m bench.step --config configs/quickstart.yaml --backends reference,reference:compiled,torch:eager:bf16

`bench.backend_spec` lists the words that may follow a backend's name. Each backend runs in processes of its own, which
take turns for `--rounds` rounds; figures are medians over all of them, ratios are relative to the first backend. Inputs
are random numbers of the configured shapes. Per backend:

- `step_seconds`: quartiles of the steps after the warm-up.
- `peak_memory_gib`: the peak of the process (on CUDA: of the allocator) above what it held after the imports, from
  building the model on; `steps_peak_memory_gib`: the same for the timed steps alone, after freed memory was returned
  and one more step taken (what compiling keeps is included). `reserved_memory_gib`: on CUDA, what the allocator
  reserved, including pools of CUDA graphs, which the peak leaves out.
- `saved_for_backward_bytes`, `flops`, `forward_flops`: counted for one forward and backward pass, eager, by
  `bench.measure.count` on tensors without data with the operators of a CPU: the same on every device. FLOPs are those
  executed, including recomputation.
- `fraction_of_matrix_peak`: FLOPs per second relative to the best matrix product of the same precision that any of the
  processes measured (`bench.matrix_peak`).
- `compile`, for compiled ones: seconds of the warm-up beyond those of its steps, without and with the compiler's cache;
  number of graphs, and reasons of graph breaks; bytes that the compiled model saves for backward.

`--steps 0` only counts, which takes little memory. A backend that fails has an `error` instead of figures, one that
cannot be counted a `count_error` instead of counts. Exit status 1: one of them failed.
"""

import statistics
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Final, Self

import torch
from torch import nn

from bench.backend_spec import (
    BackendSpec,
    build,
    compile_module,
    configure,
    is_compiled,
    parse_specs,
)
from bench.matrix_peak import best_peaks, matrix_peak
from bench.measure import PeakMemory, count, count_saved, forget_data, state_of, without_data
from bench.processes import add_turns, do_task, make_parser, not_negative, positive, run_task, take_turns, write
from bench.result_files import Record
from bench.timing import quartiles, seconds_of
from pgat_fast.config.schema import Config
from pgat_fast.data.windows import Batch, example
from pgat_fast.distributed.process_group import SingleProcess
from pgat_fast.errors import PgatError
from pgat_fast.model.precision import Precision, resolve_precision
from pgat_fast.monitoring.memory import release_caches
from pgat_fast.training.optimizer_step import OptimizerStep, make_optimizer
from pgat_fast.utils.device import resolve_device
from pgat_fast.utils.system import GIB
from pgat_fast.utils.table import format_columns

MODULE: Final = "bench.step"

WARM_UP: Final = 1
COMPILED_WARM_UP: Final = 2
"""Warm-up steps of compiled models; the second absorbs any compilation that the first left over."""

MEMORY: Final = ("peak_memory_gib", "steps_peak_memory_gib", "baseline_memory_gib")
LESS: Final = ("peak_memory_gib", "saved_for_backward_bytes", "flops")
"""Figures for which less is better."""


# --- in a process of one backend --------------------------------------------------------------------------------------


def measure(task: Record) -> Record:
    """Run the task of one process: count or time, as its `kind` says."""
    spec = BackendSpec(**task["spec"])
    config = configure(spec, task["config"], task["overrides"])
    if task["kind"] == "count":
        return count_step(config, spec, task["batch"])
    return time_steps(config, spec, task["batch"], task["steps"], task["peak_seconds"])


def count_step(config: Config, spec: BackendSpec, batch: int) -> Record:
    """Count a step on tensors without data, with the precision of the configured device and the operators of a CPU."""
    precision = resolve_precision(config.run.precision, resolve_device(config.run.device))
    device = torch.device("cpu")
    model = build(config, spec)
    with without_data():
        forget_data(model)
        step = optimizer_step(model, config, precision, device)
        inputs = example(config.model, batch)
        counts = count(lambda: step.loss(inputs), [*state_of(model), *inputs])
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), **counts.record()}


def time_steps(config: Config, spec: BackendSpec, batch: int, steps: int, peak_seconds: float) -> Record:
    """Return the seconds of `steps` training steps after the warm-up, the peak memory, and the peak of products."""
    trained = TrainedModel(config, spec, batch)
    seconds = trained.seconds_of(steps)
    record = trained.record()  # before the products below allocate memory
    peak = matrix_peak(trained.precision, trained.device, peak_seconds)
    return {"seconds": seconds, **record, "matrix_peak": peak}


class TrainedModel:
    """Warmed-up model that takes training steps, with its peak memory tracked."""

    def __init__(self, config: Config, spec: BackendSpec, batch: int) -> None:
        self.device = device = resolve_device(config.run.device)
        self.precision = resolve_precision(config.run.precision, device)
        torch.manual_seed(config.training.seed)
        self._memory = PeakMemory(device)
        self.compiled = is_compiled(config, spec, device)
        self.model = build(config, spec, self.compiled).to(device)
        if self.compiled:
            torch._dynamo.utils.counters.clear()
            compile_module(self.model, spec, device)
        graphs = self.compiled and device.type == "cuda" and spec.backend != "reference"
        self._step = optimizer_step(self.model, config, self.precision, device, graphs=graphs)
        self._inputs = Batch(*(tensor.to(device) for tensor in example(config.model, batch)))
        self.warm_up = seconds_of(self._take, COMPILED_WARM_UP if self.compiled else WARM_UP, device)
        self._compiler = Compiler.now() if self.compiled else None
        self._whole = self._memory.above_baseline()
        release_caches()
        self._take()
        self._memory.forget()

    def _take(self) -> None:
        self._step.apply(self._step.accumulate([lambda: self._inputs]), 1)

    def seconds_of(self, steps: int) -> list[float]:
        """Return the seconds of each of `steps` steps."""
        return seconds_of(self._take, steps, self.device)

    def record(self) -> Record:
        """Return all figures but the seconds. Raises RuntimeError if a step was not finite."""
        steps_peak = self._memory.above_baseline()
        reserved = self._memory.reserved()
        figures: Record = {
            "precision": self.precision,
            "compiled": self.compiled,
            "warm_up_seconds": self.warm_up,
            "peak_memory_gib": max(self._whole, steps_peak) / GIB,
            "steps_peak_memory_gib": steps_peak / GIB,
            "baseline_memory_gib": self._memory.baseline / GIB,
            "reserved_memory_gib": None if reserved is None else reserved / GIB,
            "device": str(self.device),
        }
        if self._step.flags.raised(wait=True):
            raise RuntimeError("a step was not finite and thus left out: the timings mean nothing")
        if self._compiler:
            figures["compiler"] = Compiler.now().record(self._compiler)
            with count_saved([*state_of(self.model), *self._inputs]) as saved:
                loss = self._step.loss(self._inputs)
            figures["compiler"]["saved_for_backward_bytes"] = saved.total
            saved.forget()
            loss.backward()
        return figures


def optimizer_step(
    model: nn.Module,
    config: Config,
    precision: Precision,
    device: torch.device,
    *,
    graphs: bool = False,
    group: SingleProcess | None = None,
) -> OptimizerStep:
    """Return the optimizer step of training for `model`, with a learning rate that is stable on random numbers."""
    settings = config.training.model_copy(update={"learning_rate": 1e-5})
    optimizer = make_optimizer(model, settings)
    return OptimizerStep(model, optimizer, config.model, settings, precision, device, graphs=graphs, group=group)


@dataclass(frozen=True)
class Compiler:
    """Counters of torch's compiler in this process."""

    graphs: int
    breaks: dict[str, int]
    """Reason, one line -> number of breaks."""

    @classmethod
    def now(cls) -> Self:
        counters = torch._dynamo.utils.counters
        breaks: Counter[str] = Counter()
        for reason, times in counters["graph_break"].items():
            breaks[reason.strip().splitlines()[0]] += times
        return cls(counters["stats"]["unique_graphs"], dict(breaks))

    def record(self, start: Self) -> Record:
        """Return the counters as a record; `start` is the state at the start of the timed steps."""
        return {
            "graphs": self.graphs,
            "graphs_made_while_timed": self.graphs - start.graphs,
            "graph_breaks": sum(self.breaks.values()),
            "graph_break_reasons": self.breaks,
        }


# --- all backends -----------------------------------------------------------------------------------------------------


def timing(rounds: list[Record]) -> Record:
    """Return the figures that the processes of one backend have measured."""
    first = rounds[0]
    return {
        "precision": first["precision"],
        "compiled": first["compiled"],
        "device": first["device"],
        "first_step_seconds": first["warm_up_seconds"][0],
        "step_seconds": quartiles([seconds for record in rounds for seconds in record["seconds"]]),
        **{key: statistics.median(record[key] for record in rounds) for key in MEMORY},
        "reserved_memory_gib": first["reserved_memory_gib"],
    }


def summarize(name: str, counted: Record, rounds: list[Record], batch: int) -> Record:
    """Return the figures of one backend; `rounds` is empty if nothing was timed."""
    errors = [record["error"] for record in rounds if "error" in record]
    if errors:
        return {"backend": name, "error": errors[0]}
    result: Record = {"backend": name}
    result |= {"count_error": counted["error"]} if "error" in counted else counted
    if not rounds:
        return result
    result |= timing(rounds)
    median = result["step_seconds"]["median"]
    result["round_medians"] = [statistics.median(record["seconds"]) for record in rounds]
    result["windows_per_second"] = batch / median
    if "flops" in counted:
        result["flop_per_second"] = counted["flops"] / median
    if result["compiled"]:
        compile_seconds = [sum(record["warm_up_seconds"]) - COMPILED_WARM_UP * median for record in rounds]
        cached = statistics.median(compile_seconds[1:]) if len(compile_seconds) > 1 else None
        result["compile"] = {"seconds": compile_seconds[0], "seconds_with_cache": cached, **rounds[0]["compiler"]}
    return result


def compare(result: Record, first: Record) -> Record:
    """Return how many times less `result` takes than `first`, for the figures that both have."""
    ratios = {key: first[key] / result[key] for key in LESS if result.get(key) and first.get(key)}
    if "step_seconds" in result and "step_seconds" in first:
        ratios["step_seconds"] = first["step_seconds"]["median"] / result["step_seconds"]["median"]
    return ratios


def as_table(results: list[Record]) -> str:
    """Return the results as a table; an unknown figure is `-`."""
    rows = [("backend", "seconds a step", "times faster", "peak memory", "saved for backward", "FLOP", "of the peak")]
    for result in results:
        error = result.get("error") or result.get("count_error")
        if error:
            rows.append((result["backend"], error, *"-----"))
            continue
        timed = "step_seconds" in result
        faster = result.get("times_less_than_first", {}).get("step_seconds", 1)
        rows.append(
            (
                result["backend"],
                f"{result['step_seconds']['median']:.3g}" if timed else "-",
                f"{faster:.2f}" if timed else "-",
                f"{result['peak_memory_gib']:.2f} GiB" if timed else "-",
                f"{result['saved_for_backward_bytes'] / 1e9:.3g} GB",
                f"{result['flops']:.3g}",
                f"{result['fraction_of_matrix_peak']:.1%}" if timed else "-",
            )
        )
    return format_columns(rows)


def main() -> int:
    """Run the benchmark, or one of its processes. Returns 1 if a backend failed."""
    if sys.argv[1:2] == ["--task"]:
        return do_task(measure, sys.argv[2])
    parser = make_parser(__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument(
        "--backends", type=parse_specs, default=[BackendSpec("reference")], metavar="NAME[:WORD...],..."
    )
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--steps", type=not_negative, default=5, help="steps to time in each process; 0: only count")
    add_turns(parser)
    args = parser.parse_args()
    try:
        for spec in args.backends:
            configure(spec, args.config, args.overrides)
    except PgatError as error:
        parser.error(str(error))

    common = {"kind": "time", "config": args.config, "overrides": args.overrides, "batch": args.batch}
    common |= {"steps": args.steps, "peak_seconds": args.peak_seconds}
    tasks = {str(spec): {"spec": asdict(spec), **common} for spec in args.backends}
    counted: dict[BackendSpec, Record] = {}
    for spec in args.backends:
        key = replace(spec, compiled=None)  # compiling does not change the counts
        if key not in counted:
            counted[key] = run_task(MODULE, tasks[str(spec)] | {"kind": "count"}, args.time_limit)
    timed, order = take_turns(MODULE, tasks, args.rounds if args.steps else 0, args.time_limit)
    results = [
        summarize(str(spec), counted[replace(spec, compiled=None)], timed[str(spec)], args.batch)
        for spec in args.backends
    ]
    peaks = best_peaks(record for rounds in timed.values() for record in rounds)
    for result in results:
        if "flop_per_second" in result:
            peak = peaks[result["precision"]]["flop_per_second"]
            result["fraction_of_matrix_peak"] = result["flop_per_second"] / peak
        if result is not results[0]:
            result["times_less_than_first"] = compare(result, results[0])
    print(as_table(results))
    settings = {"batch": args.batch, "steps": args.steps, "rounds": args.rounds, "order": order, "matrix_peak": peaks}
    write(args.json, MODULE, {**settings, "results": results})
    return int(any({"error", "count_error"} & result.keys() for result in results))


if __name__ == "__main__":
    sys.exit(main())
