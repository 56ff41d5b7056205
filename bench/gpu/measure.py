"""Benchmark of the kernels on a GPU, in one file and one table: speed, correctness and repeatability.

    make gpu
    PYTHONPATH=.:kernels python3 -m bench.gpu.measure --out STEM     # where nothing can be installed

Needs torch and triton alone. What does not begin within `--seconds` is listed as not run, and what is not done `GRACE`
seconds later is ended. On a GPU everything runs in a monitored process: after an error that CUDA does not recover from
(an illegal address), a crash or a hang, a new process continues with the next item. In this order:

- `steps`: training steps of the production configurations (`bench.gpu.headline`), each way in a process of its own, the
  time of an epoch of 421 such steps, and peak memory, next to the targets and what the cost model says. Compiled ways
  are compiled anew each time. The ways of `headline.FIRST` come first, in three minutes, the others after `kernels`.
- `parity`: errors of every kernel's result and gradients against float64, as a fraction of what rounding explains (at
  most 1 is expected; see `pgat_kernels.conditioning`): 16-bit dtypes first, the other dtypes near the end.
- `repeatable`: whether `--runs` runs at production sizes agree bitwise.
- `kernels`: milliseconds of forward and backward pass at production sizes, with the products of torch that belong to
  them, and in plain torch; and the time that the model (`bench.gpu.cost_model`) predicts for the kernel launches alone.
- `others`: cuDNN's GRU next to `gru_bank`, torch's fused attention next to `graph_attention`.
- `compiled`: the error of gradients of the compiled model against float64, as a fraction of what rounding explains, for
  the worst parameter; in training mode, with dropout, for the step that replays CUDA graphs.

Exit status 1: a kernel is wrong or not repeatable, or something failed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.gpu.cost_model import GPUS, work_of_launch
from bench.gpu.headline import FIRST, LATER, Way, time_of
from bench.gpu.kernel_cases import CASES, DTYPES, TIMESTEPS, Case, gradient, numbers, results
from bench.gpu.production import build, settings_of
from bench.machine import describe
from bench.processes import end, make_parser
from bench.result_files import Record, folder_of
from bench.timing import seconds_of
from pgat_fast.utils.device import synchronize
from pgat_fast.utils.io import write_atomically, write_json

Item = tuple[str, str, Callable[[], Record]]
"""Section, name, and the function that measures it."""

ITEM_SECONDS: Final = 160
"""Seconds after which an item counts as hanging; enough for compilations."""
REPLAYS: Final = 4
"""Steps of a compiled model until CUDA graphs are replayed; they are recorded in the second."""
MOST_SECONDS: Final = 420.0
"""Default of `--seconds`: what does not begin within it is not run."""
GRACE: Final = 45.0
"""Seconds after `--seconds` at which the last item is ended. All together takes less than eight minutes."""
COMBINERS: Final = ("batched", "hierarchical")
SECTIONS: Final = ("steps", "parity", "repeatable", "kernels", "others", "compiled")


def sections(device: torch.device, timesteps: int, runs: int, step: Callable[[Way], Record]) -> Iterator[Item]:
    """Yield all items, the most important first; `step` times a way to compute training steps."""
    # A multiple of 16, as the large one: triton would compile a different kernel for other numbers.
    small, large = max(1, timesteps // 16 // 16 * 16), timesteps
    first = [(case, case.dtypes[0]) for case in CASES]
    others = [(case, dtype) for case in CASES for dtype in case.dtypes[1:]]

    def of_case(section: str, case: Case, dtype: str, measure: Callable[..., Record], *sizes: int) -> Item:
        name = f"{case.operator}, {case.shape}, {dtype}"
        return section, name, partial(measure, case, DTYPES[dtype], device, *sizes)

    yield from (("steps", way.name, partial(step, way)) for way in FIRST)
    for case, dtype in first:
        yield of_case("parity", case, dtype, parity, small)
    for case, dtype in first:
        yield of_case("repeatable", case, dtype, repeatable, large, runs)
    for case, dtype in first:
        yield of_case("kernels", case, dtype, timed, large)
    yield from (("steps", way.name, partial(step, way)) for way in LATER)
    yield "others", "GRU", partial(against_cudnn, device, large)
    for nodes in (13, 39, 169):
        yield "others", f"attention, {nodes} nodes", partial(against_fused, nodes, device, large)
    for case, dtype in others:
        yield of_case("parity", case, dtype, parity, small)
    for combiner in COMBINERS:
        yield "compiled", f"quickstart, {combiner}", partial(compiled_against_eager, device, combiner)


# --- measurements -----------------------------------------------------------------------------------------------------


def parity(case: Case, dtype: torch.dtype, device: torch.device, timesteps: int) -> Record:
    """Return the largest error of kernels against float64, of result and gradients, over what rounding explains."""
    from pgat_kernels.conditioning import errors_and_bounds

    leaves = case.leaves(dtype, device, timesteps)
    actual = results(case, leaves, True)
    g = gradient(actual[0])
    exact = results(case, [x.double() for x in leaves], False, g.double())
    checks = errors_and_bounds(actual, exact, lambda tensors: results(case, tensors, False, g), leaves, dtype)
    worst = max(error / bound for error, bound in checks)
    return {"ok": worst <= 1, "of_what_rounding_explains": worst}


def repeatable(case: Case, dtype: torch.dtype, device: torch.device, timesteps: int, runs: int) -> Record:
    """Return whether all runs agree bitwise with the first."""
    leaves = case.leaves(dtype, device, timesteps)
    first = results(case, leaves, True)
    for run in range(1, runs):
        if not all(torch.equal(a, b) for a, b in zip(results(case, leaves, True), first, strict=True)):
            return {"ok": False, "runs": runs, "first_difference_in_run": run}
    return {"ok": True, "runs": runs}


def timed(case: Case, dtype: torch.dtype, device: torch.device, timesteps: int) -> Record:
    """Return milliseconds of forward and backward pass, with torch's products, and the model's for the launches."""
    from pgat_kernels.dispatch import gpu_of
    from pgat_kernels.instrumentation import record_launches

    leaves = case.leaves(dtype, device, timesteps)
    g = gradient(results(case, leaves, True)[0])
    record: Record = {"ok": True, "kernels_ms": milliseconds(lambda: results(case, leaves, True, g), device)}
    model = model_of(device)
    if model is not None:
        with record_launches(gpu_of(device)) as launches:
            results(case, leaves, True, g)
        record["model_of_launches_ms"] = 1e3 * sum(work_of_launch(launch).seconds(model) for launch in launches)
        record["fraction_of_model"] = record["model_of_launches_ms"] / record["kernels_ms"]
        del launches[:]
    try:
        record["plain_ms"] = milliseconds(lambda: results(case, leaves, False, g), device)
    except torch.OutOfMemoryError:
        record["plain_ms"] = "out of memory"
    return record


def milliseconds(run: Callable[[], Any], device: torch.device, times: int = 10) -> float:
    """Return the median time of `times` calls in milliseconds, after a warm-up of two."""
    return 1e3 * median(seconds_of(run, 2 + times, device)[2:])


def model_of(device: torch.device) -> Any:
    """Return the entry of `bench.gpu.cost_model.GPUS` for this GPU; None if it has none."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((gpu for gpu in GPUS if gpu.name in name), None)


def compiled_against_eager(device: torch.device, combiner: str, **changes: Any) -> Record:
    """Check the gradients of the compiled model of the quickstart, with kernels requested for its operators.

    Args:
        device: the device to run on.
        combiner: combiner of the model.
        changes: other settings of the model.
    """
    from pgat_fast.data.batch import example
    from pgat_fast.model.compilation import compile_in_place
    from pgat_fast.model.optimized.pgat import FastPGAT
    from pgat_kernels.conditioning import errors_and_bounds
    from pgat_kernels.dispatch import Kernels

    settings, _ = settings_of("quickstart", combiner=combiner, **changes)
    inputs = [x.to(device) for x in example(settings, 2)[:4]]
    torch.manual_seed(3)
    weights = {name: p.detach().to(device) for name, p in build("torch", settings).named_parameters()}

    def gradients_by(dtype: torch.dtype, compiled: bool) -> Callable[[list[Tensor]], list[Tensor]]:
        """Return a function of weights and inputs that returns the gradients of all weights."""
        model = build("torch", settings).to(device, dtype)
        assert isinstance(model, FastPGAT)
        model.set_execution(replace(model.execution, compiled=compiled, kernels=Kernels(dtype == torch.float32)))
        if compiled:
            compile_in_place(model, device)
        parameters = dict(model.named_parameters())

        def compute(tensors: list[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                for parameter, tensor in zip(parameters.values(), tensors[: len(weights)], strict=True):
                    parameter.copy_(tensor)
            model_inputs = [x.to(dtype) for x in tensors[len(weights) :]]
            for _ in range(REPLAYS if compiled else 1):
                torch.manual_seed(7)  # for dropout, whose masks do not depend on the dtype
                torch.compiler.cudagraph_mark_step_begin()
                model.zero_grad()
                model(*model_inputs)[0].square().sum().backward()
            return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters.values()]

        return compute

    tensors = [*weights.values(), *inputs]
    exact = gradients_by(torch.float64, compiled=False)(tensors)
    actual = gradients_by(torch.float32, compiled=True)(tensors)
    checks = errors_and_bounds(actual, exact, gradients_by(torch.float32, compiled=False), tensors, torch.float32)
    worst, name = max((error / bound, name) for (error, bound), name in zip(checks, weights, strict=True))
    return {"ok": worst <= 1, "of_what_rounding_explains": worst, "in_the_gradient_of": name}


def against_cudnn(device: torch.device, timesteps: int) -> Record:
    """Time 13 GRUs of 32 states: one after the other by cuDNN, and all at once by `gru_bank`."""
    case = next(case for case in CASES if case.operator == "gru_bank")
    leaves = case.leaves(torch.float32, device, timesteps)
    recurrences: Any = torch.backends.cudnn.rnn
    recurrences.fp32_precision = "ieee"  # as in the kernel
    grus = nn.ModuleList(nn.GRU(32, 32, batch_first=True) for _ in range(leaves[0].shape[2])).to(device)
    x = leaves[0].detach()
    g = torch.ones_like(x)

    def one_by_one() -> None:
        leaf = x.clone().requires_grad_()
        torch.stack([gru(leaf[:, :, i])[0] for i, gru in enumerate(grus)], dim=2).backward(g)

    return {
        "ok": True,
        "kernels_ms": milliseconds(lambda: results(case, leaves, True, g), device),
        "cudnn_ms": milliseconds(one_by_one, device),
    }


def against_fused(nodes: int, device: torch.device, timesteps: int) -> Record:
    """Time `graph_attention` and torch's `scaled_dot_product_attention` on equal inputs, without mask and dropout."""
    from pgat_kernels.ops.graph_attention import graph_attention

    graphs = timesteps * (13 if nodes == 39 else 1)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = numbers((graphs, nodes, 3, 8, 26), dtype, device, salt=0).permute(2, 0, 3, 1, 4)
    g = numbers((graphs, 8, nodes, 26), dtype, device, salt=1)

    def run(function: Callable[..., Tensor]) -> None:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        function(*leaves).backward(g)

    return {
        "ok": True,
        "kernels_ms": milliseconds(lambda: run(graph_attention), device),
        "fused_ms": milliseconds(lambda: run(F.scaled_dot_product_attention), device),
    }


# --- the result -------------------------------------------------------------------------------------------------------


def as_markdown(result: Record) -> str:
    """Return the result as one Markdown table."""
    description = result["machine"]
    lines = [
        f"# On {description['gpu'] or description['processor']}",
        "",
        f"torch {description['torch']}, {description['date']}, commit {description['commit']}: `{result['command']}`",
        "",
        "| section | what | | result |",
        "|---|---|---|---|",
    ]
    for section, name, record in result["records"]:
        state = "not run" if record is None else "ok" if record["ok"] else "**failed**"
        fields = {} if record is None else {key: value for key, value in record.items() if key not in ("ok", "record")}
        lines.append(f"| {section} | {name} | {state} | {', '.join(f'{k} {_short(v)}' for k, v in fields.items())} |")
    return "\n".join([*lines, ""])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).strip().replace("\n", " ").replace("|", "/")[-200:]


# --- execution --------------------------------------------------------------------------------------------------------

Done = tuple[int, Record | None]
"""Index of an item, and its record; None for one that was not run."""


def in_this_process(items: list[Item], first: int, deadline: float, device: torch.device) -> Iterator[Done]:
    """Run the items from `first` on; stop after a record with `lost`, as the GPU is then unusable here."""
    for i, (_, _, measure) in enumerate(items[first:], first):
        if time.monotonic() >= deadline:
            yield i, None
            continue
        started = time.monotonic()
        try:
            if device.type == "cuda":
                torch.cuda.empty_cache()  # processes of `bench.step` need the memory
            record = measure()
        except Exception as error:  # a failure of one item must not stop the others
            record = {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
            if is_lost(device):
                record["lost"] = True
        yield i, record | {"seconds": time.monotonic() - started}
        if "lost" in record:
            return


def is_lost(device: torch.device) -> bool:
    """Return whether this process has a persistent CUDA error, whatever exception reported it first."""
    try:
        synchronize(device)
    except Exception:
        return True
    return False


def in_processes(
    command: Callable[[int, Path, float], list[str]],
    count: int,
    deadline: float,
    limit: float = ITEM_SECONDS,
    grace: float = GRACE,
) -> Iterator[Done]:
    """Run `count` items in a process, and continue in another one if it ends early.

    Args:
        command: returns, for the first item, a file and the seconds left, the command of a process that runs the items
            and appends a line of JSON to the file for each, `[item, record]`.
        count: number of items.
        deadline: items that have not begun by this time (of `time.monotonic`) are not run.
        limit: time limit of one item, in seconds.
        grace: seconds after the deadline at which an item that has begun is ended.
    """
    first = 0
    while first < count:
        if time.monotonic() >= deadline:
            yield from ((i, None) for i in range(first, count))
            return
        lost = hangs = False
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "records.jsonl"
            file.touch()
            child = subprocess.Popen(command(first, file, deadline - time.monotonic()), start_new_session=True)
            started, partial_line = time.monotonic(), ""
            try:
                with file.open(encoding="utf-8") as lines:
                    while True:
                        ended = child.poll() is not None
                        *complete_lines, partial_line = (partial_line + lines.read()).split("\n")
                        for line in complete_lines:
                            first, record = json.loads(line)
                            lost = record is not None and "lost" in record
                            yield first, record
                            first, started = first + 1, time.monotonic()
                        if ended:
                            break
                        if time.monotonic() > min(started + limit, deadline + grace):
                            hangs = True
                            end(child)
                        time.sleep(0.05)
            finally:
                end(child)
        if first < count and not lost:
            reason = (
                f"it was not done after {min(limit, deadline + grace - started):.0f} s"
                if hangs
                else f"its process ended with {child.returncode}"
            )
            yield first, {"ok": False, "error": reason}
            first += 1


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    parser.add_argument("--save", action="store_true", help="write bench/results/MACHINE/DATE/gpu.md and gpu.json")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS, help="what does not begin within it is not run")
    parser.add_argument("--runs", type=int, default=100, help="of every kernel, to see whether they agree")
    parser.add_argument("--timesteps", type=int, default=TIMESTEPS, help="of the inputs")
    parser.add_argument("--device", default="cuda", help="cpu runs interpreted kernels, to try this program out")
    text = "JSON: `batch`, `steps`, `warm_up` and settings of the `model` of training steps, to try this program out"
    parser.add_argument("--sizes", default="{}", help=text)
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)  # first item and file of a monitored process
    parser.add_argument("--only", default="", metavar="TEXT", help="measure only what has this in its name")
    parser.add_argument("--sections", default=",".join(SECTIONS), metavar="NAME,...")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: this measures kernels on a GPU")
    deadline = time.monotonic() + args.seconds
    selected = args.sections.split(",")
    if unknown := sorted(set(selected) - set(SECTIONS)):
        parser.error(f"--sections: {', '.join(unknown)}: not one of {', '.join(SECTIONS)}")

    def step(way: Way) -> Record:
        compiled = Path(args.part[1]).with_name("compiled") if args.part else None
        environment = {} if compiled is None else {"TORCHINDUCTOR_CACHE_DIR": str(compiled)}
        return time_of(way, device, environment, deadline + GRACE - time.monotonic(), **json.loads(args.sizes))

    every = sections(device, args.timesteps, args.runs, step)
    items = [item for item in every if item[0] in selected and args.only in item[1]]
    if args.part:
        with Path(args.part[1]).open("a", encoding="utf-8", buffering=1) as file:
            for outcome in in_this_process(items, int(args.part[0]), deadline, device):
                file.write(json.dumps(outcome) + "\n")
        return 0
    given = sys.argv[1:] if arguments is None else arguments

    def command(first: int, file: Path, seconds: float) -> list[str]:
        command_line = [*given, "--seconds", str(seconds), "--part", str(first), str(file)]
        return [sys.executable, "-m", "bench.gpu.measure", *command_line]

    command_line = f"python -m bench.gpu.measure {' '.join(given)}".strip()
    result: Record = {"command": command_line, "machine": describe(), "records": []}
    stem = folder_of(result["machine"]) / "gpu" if args.save else args.out
    outcomes = in_processes(command, len(items), deadline)
    for i, record in outcomes if device.type == "cuda" else in_this_process(items, 0, deadline, device):
        result["records"].append((*items[i][:2], record))
        print(as_markdown({**result, "records": result["records"][-1:]}).splitlines()[-1], flush=True)
        if stem:
            write_json(stem.with_suffix(".json"), result)
            write_atomically(stem.with_suffix(".md"), as_markdown(result).encode())
    return int(any(record is not None and not record["ok"] for *_, record in result["records"]))


if __name__ == "__main__":
    sys.exit(main())
