"""Tuning of the kernels on this GPU: writes `kernels/pgat_kernels/tuning_table.json`, which launches are configured by.

    make tune
    PYTHONPATH=.:kernels python3 -m bench.gpu.tune      # where nothing can be installed

For every configuration in `pgat_kernels.launch_configs` that production sizes use, it varies one number after the other
(`VALUES`), from the committed configuration on, and keeps what makes its launches faster by 2 % with the same results.
Each launch is timed alone, by the events of the device. The kernels that take most of a production step come first: the
time of their launches, times the launches of a step in the committed cost model. Configurations that do not fit the GPU
are rejected; spilled registers are left to the time to judge. Then it measures, from small inputs to large ones, the
number of rows from which kernels are faster than plain torch, compiled or not, which decides `backend: auto`. (Both are
called from Python, as without CUDA graphs. Products of float32 are exact: TF32 is not measured.)

The entries of other architectures are kept. What does not begin within `--seconds` is left unchanged, and listed; run
it again for the rest. Needs torch and triton alone. Commit the file together with the new output of `bench.gpu.static`
and `bench.gpu.cost_model`.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import torch
from torch import Tensor

from bench.gpu.cost_model import work_of_launch
from bench.gpu.kernel_cases import CASES, DTYPES, TIMESTEPS, gradient, results
from bench.gpu.kernel_cases import Case as Operator
from bench.gpu.measure import is_lost, milliseconds
from bench.processes import make_parser
from bench.result_files import load
from bench.timing import seconds_of
from pgat_fast.errors import DataError
from pgat_fast.utils.io import write_atomically
from pgat_kernels.dispatch import gpu_of
from pgat_kernels.instrumentation import Launch, intercept_launches, record_configurations, try_configuration
from pgat_kernels.launch_configs import configuration
from pgat_kernels.torch_features import compile_apart
from pgat_kernels.tuning_table import FILE, Case, Configuration, Entry, Threshold, as_json, read

VALUES: Final = {"block": (16, 32, 64, 128), "warps": (2, 4, 8, 16), "columns": (16, 32, 64), "stages": (1, 2, 3)}
"""Values of each number of a configuration, in the order in which they are tried."""
REPEATS: Final = 5
"""Timed launches of a kernel with a configuration."""
HOLDS_ALL: Final = ("graph_attention", "aspects")
"""Kernels (prefixes of their names) with tiles that must hold the largest size of the case."""
FASTER: Final = 0.98
"""A configuration is kept if it takes at most this fraction of the time; a smaller gain may be noise."""
OF_CONFIGURATIONS: Final = 0.6
"""Fraction of the time that configurations may take; the rest is for the comparison with plain torch."""
LADDER: Final = (64, 8, 1)
"""Divisors of the largest number of timesteps at which kernels and plain torch are compared."""
FEW: Final = 10
"""Results with fewer elements than this get an additional tolerance."""

Use = tuple[Operator, torch.dtype]


def candidates(case: Case, best: Configuration, field: str) -> Iterator[Configuration]:
    """Yield `best` with every other value of `field` that the kernel can be compiled for."""
    if getattr(best, field) == 0:
        return
    least = case.most if field == "block" and case.kernel.startswith(HOLDS_ALL) else 0
    for value in VALUES[field]:
        if value >= least and value != getattr(best, field):
            yield best._replace(**{field: value})


def uses(device: torch.device) -> dict[Case, list[Use]]:
    """Return the cases of the table that operators ask for at production sizes -> those operators and their dtypes."""
    users_by_case: dict[Case, list[Use]] = {}
    for operator, dtype in measured_operators():
        with record_configurations() as cases:
            results(operator, operator.leaves(dtype, device, 1), True)
        for case in dict.fromkeys(cases):
            users_by_case.setdefault(case, []).append((operator, dtype))
    return users_by_case


def measured_operators() -> Iterator[Use]:
    """Yield the operators that the model uses, in float32 and bf16; fp16 has the configurations of bf16."""
    for operator in CASES:
        for name in operator.dtypes if operator.threshold else ():
            if name != "fp16":
                yield operator, DTYPES[name]


class UnfitError(Exception):
    """A configuration must not be used here."""


def seconds_of_launches(
    case: Case, chosen: Configuration, users: list[Use], device: torch.device, timesteps: int
) -> tuple[dict[str, float], list[list[Tensor]]]:
    """Return the seconds of the launches of `case` in both passes of `users`, by name, and the results of `users`."""
    seconds: dict[str, float] = {}
    own = Configuration(*chosen)  # an object of its own, by which its launches are found

    def execute(launch: Launch) -> None:
        run = partial(run_launch, launch)
        if launch.configuration is own:
            name = work_of_launch(launch).name
            seconds[name] = seconds.get(name, 0.0) + seconds_by_events(run, device)
        else:
            run()

    with try_configuration(case, own), intercept_launches(execute):
        all_results = [results(operator, operator.leaves(dtype, device, timesteps), True) for operator, dtype in users]
    return seconds, all_results


def run_launch(launch: Launch) -> None:
    """Run a recorded launch; it may be repeated, since no kernel reads what it writes."""
    block, warps, stages, _ = launch.configuration
    if launch.programs:
        launch.kernel[(launch.programs,)](
            *launch.tensors, **launch.named, BLOCK=block, num_warps=warps, num_stages=stages
        )


def seconds_by_events(run: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of `REPEATS` launches after a warm-up, by events on a GPU, by the clock elsewhere."""
    if device.type != "cuda":
        return median(seconds_of(run, 1 + REPEATS, device)[1:])
    run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
    for before, after in events:
        before.record()
        run()
        after.record()
    torch.cuda.synchronize(device)
    return float(median(before.elapsed_time(after) for before, after in events)) / 1e3


def launches_of_a_step() -> dict[str, int]:
    """Return name of a kernel with its sizes -> launches in a production step, by the committed cost model."""
    counts: dict[str, int] = {}
    for combiner in ("batched", "hierarchical"):
        with contextlib.suppress(DataError):
            gpus = load(f"cost_model_{combiner}", "offline")["gpus"]
            for row in next(iter(gpus.values()))["rows"]:
                counts[row["name"]] = max(counts.get(row["name"], 0), row["launches"])
    return counts


def by_production_time(
    cases: dict[Case, list[Use]], entry: Entry, gpu: str, device: torch.device, timesteps: int
) -> list[Case]:
    """Return `cases` in the order of the time that they take in a production step, the longest first.

    Dtypes that production does not use come last. A kernel that does not run is taken first: it may run with another
    configuration.
    """
    counts = launches_of_a_step()

    def production_seconds(case: Case) -> float:
        start = entry.configurations.get(case) or configuration(*case, gpu)
        try:
            seconds, _ = seconds_of_launches(case, start, cases[case], device, timesteps)
        except Exception:
            if is_lost(device):
                raise
            return math.inf
        total = sum(counts.get(name, 1) * value for name, value in seconds.items())
        first = any(dtype == DTYPES[operator.dtypes[0]] for operator, dtype in cases[case])
        return total if first else total - 1e6

    return sorted(cases, key=production_seconds, reverse=True)


def alike(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether `actual` and `expected` differ by rounding only."""
    a, b, eps = actual.double(), expected.double(), float(torch.finfo(dtype).eps)
    # With few elements, each a long sum that may end near zero, the relative error is arbitrary.
    allowed: float = 8 * eps * (float(b.norm()) + b.numel() ** 0.5 * 1e-3) + (32 * eps if b.numel() < FEW else 0)
    return float((a - b).norm()) <= allowed


def fastest(
    case: Case,
    start: Configuration,
    seconds: Callable[[Configuration], float],
    say: Callable[[str], None],
    lost: Callable[[], bool],
) -> Configuration | None:
    """Return the fastest configuration, varying one number after the other from `start`; None if none can be used.

    `seconds` raises if a configuration cannot be used. Its error is raised again if the GPU is `lost` after it.
    """

    def tried(chosen: Configuration) -> float:
        try:
            return seconds(chosen)
        except Exception as error:  # triton raises various errors for one that does not fit
            if lost():
                say(f"    {tuple(chosen)} of {case.kernel}: the GPU is lost; nothing more can be measured here")
                raise
            say(f"    {tuple(chosen)}: {type(error).__name__}: {str(error).strip()[:100]}")
            return math.inf

    best, least = start, tried(start)
    first = least
    for field in VALUES:
        for candidate in list(candidates(case, best, field)):
            candidate_seconds = tried(candidate)
            if candidate_seconds < FASTER * least:
                best, least = candidate, candidate_seconds
    say(f"{words_of(case)}: {tuple(start)} {1e3 * first:.3f} ms -> {tuple(best)} {1e3 * least:.3f} ms")
    return best if least < math.inf else None


def words_of(case: Case) -> str:
    return f"{case.kernel}, {8 * case.itemsize} bits, up to {case.most}"


def tuned(
    case: Case,
    start: Configuration,
    users: list[Use],
    device: torch.device,
    timesteps: int,
    say: Callable[[str], None],
) -> Configuration | None:
    """Return the fastest configuration for `users`, searched from `start` on; None if none can be used."""
    baseline: list[list[list[Tensor]]] = []

    def seconds(chosen: Configuration) -> float:
        by_name, actual = seconds_of_launches(case, chosen, users, device, timesteps)
        if not baseline:  # the first that runs; the others are compared with it
            baseline.append(actual)
        expected = baseline[0]
        pairs = [
            (a, b, dtype)
            for actual_tensors, expected_tensors, (_, dtype) in zip(actual, expected, users, strict=True)
            for a, b in zip(actual_tensors, expected_tensors, strict=True)
        ]
        if not all(alike(*pair) for pair in pairs):
            raise UnfitError("its results differ")
        return sum(by_name.values())

    return fastest(case, start, seconds, say, lambda: is_lost(device))


def first_rows(pairs: list[tuple[int, float, float]]) -> int | None:
    """Return the number of rows from which kernels are faster; None if they are not at the largest size.

    Args:
        pairs: rows, seconds of kernels, and seconds of plain torch.
    """
    least = None
    for rows, kernels, plain in sorted(pairs, reverse=True):
        if kernels > FASTER * plain:
            break
        least = rows
    return least


def against_plain(
    operator: Operator, dtype: torch.dtype, device: torch.device, timesteps: int, *, compiling: bool = True
) -> list[tuple[int, float, float]]:
    """Return rows, seconds of kernels, and seconds of plain torch for each size in `LADDER`.

    Plain torch is timed eager and compiled, and the faster counts; infinite if it runs out of memory.
    """
    timings = []
    for divisor in LADDER:
        steps = max(1, timesteps // divisor)
        leaves = operator.leaves(dtype, device, steps)
        g = gradient(results(operator, leaves, True)[0])
        by_kernels = milliseconds(partial(results, operator, leaves, True, g), device) / 1e3
        implementations = [operator]
        if compiling:  # as training does: one static shape
            run = compile_apart(operator.run, fullgraph=True, dynamic=False)
            implementations.append(operator._replace(run=run))
        plain = math.inf
        for implementation in implementations:
            with contextlib.suppress(torch.OutOfMemoryError):
                seconds = milliseconds(partial(results, implementation, leaves, False, g), device) / 1e3
                plain = min(plain, seconds)
        timings.append((operator.rows(steps), by_kernels, plain))
    return timings


def bucket(size: int) -> int:
    """Return the largest size that a measurement at `size` stands for: the next power of two."""
    return 1 << (size - 1).bit_length()


def case_of(operator: Operator, dtype: torch.dtype) -> Case:
    """Return the case for which the number of rows of an operator is listed."""
    assert operator.threshold is not None
    return Case(operator.threshold, dtype.itemsize, bucket(operator.size))


def write_entry(file: Path, gpu: str, entry: Entry) -> None:
    """Replace the entry of `gpu` in `file`, by default of the shipped table if there is no such file yet."""
    entries = json.loads((file if file.exists() else FILE).read_text(encoding="utf-8"))
    entries[gpu] = as_json(entry)
    write_atomically(file, (json.dumps(entries, indent=1) + "\n").encode())


def tune(
    device: torch.device,
    file: Path,
    timesteps: int,
    limit: float,
    compiling: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Measure everything, and write `file` after every result."""
    gpu, started = gpu_of(device), time.monotonic()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    previous = read(file if file.exists() else FILE).get(gpu) or Entry(name, {}, {})
    entry = Entry(name, dict(previous.configurations), dict(previous.thresholds))
    with contextlib.ExitStack() as trials:
        users_by_case = uses(device)
        order = by_production_time(users_by_case, entry, gpu, device, timesteps) if limit > 0 else list(users_by_case)
        for case in order:
            if time.monotonic() > started + OF_CONFIGURATIONS * limit:
                say(f"{words_of(case)}: stays as it is, no time is left")
                continue
            start = entry.configurations.get(case) or configuration(*case, gpu)
            best = tuned(case, start, users_by_case[case], device, timesteps, say)
            if best is not None:
                entry.configurations[case] = best
                trials.enter_context(try_configuration(case, best))  # used by all later measurements
                write_entry(file, gpu, entry)
        for operator, dtype in measured_operators():
            case = case_of(operator, dtype)
            if time.monotonic() > started + limit:
                say(f"{words_of(case)}: not compared with plain torch, no time is left")
                continue
            try:
                pairs = against_plain(operator, dtype, device, timesteps, compiling=compiling)
            except Exception as error:  # the other operators can still be measured
                if is_lost(device):
                    raise
                say(f"{words_of(case)}: not compared: {type(error).__name__}: {str(error).strip()[:300]}")
                continue
            least = first_rows(pairs)
            entry.thresholds[case] = Threshold(least, "measured")
            timings = ", ".join(f"{rows} rows {1e3 * a:.3f} / {1e3 * b:.3f} ms" for rows, a, b in pairs)
            verdict = "plain torch is faster" if least is None else f"kernels from {least} rows on"
            say(f"{words_of(case)}: kernels / plain torch {timings}: {verdict}")
            write_entry(file, gpu, entry)


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, default=FILE, help="the file (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1500, help="what does not begin within it stays as it was")
    parser.add_argument("--timesteps", type=int, default=TIMESTEPS, help="of the largest inputs")
    parser.add_argument("--device", default="cuda", help="cpu runs interpreted kernels, to try this program out")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: this measures kernels on a GPU")
    tune(device, args.out, args.timesteps, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
