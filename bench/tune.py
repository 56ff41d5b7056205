"""Measures kernels on the GPU that is here, and writes `kernels/pgat_kernels/measured.json`, which they are run by.

    make tune
    PYTHONPATH=.:kernels python3 -m bench.tune      # where nothing can be installed

Of every configuration in `pgat_kernels.configurations` that production sizes ask for, it tries one number after the
other (`VALUES`), from the committed one on, and keeps what makes forward and backward pass faster by 2 % and computes
the same. What does not fit the GPU, or spills registers, is not taken. Then, from small inputs to large ones, it
measures from how many rows on kernels beat plain torch, compiled or not: what `backend: auto` goes by.

The entries of other architectures stay. What does not begin within `--seconds` stays as it was, and is named. Commit
the file with what `python -m bench.kernels_static --out bench/results/kernels_static` makes of it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from bench.gpu import milliseconds
from bench.kernel_cases import CASES, DTYPES, TIMESTEPS, gradient, results
from bench.kernel_cases import Case as Operator
from pgat_kernels.configurations import asked_for, configuration, trial
from pgat_kernels.dispatch import gpu_of
from pgat_kernels.measured import FILE, Case, Configuration, Measured, as_json, read

VALUES: Final = {"block": (16, 32, 64, 128), "warps": (2, 4, 8, 16), "columns": (16, 32, 64), "stages": (1, 2, 3)}
"""Of each number of a configuration, in the order in which they are tried."""
HOLDS_ALL: Final = ("graph_attention", "aspects")
"""Kernels one tile of which holds the largest size of the case."""
FASTER: Final = 0.98
"""A configuration is kept that takes this part of the time or less: what is below it may be noise."""
LADDER: Final = (256, 64, 16, 4, 1)
"""The timesteps that kernels and plain torch are compared at are the largest number divided by these."""

Use = tuple[Operator, torch.dtype]


def candidates(case: Case, best: Configuration, field: str) -> Iterator[Configuration]:
    """`best` with all other values of one number that the kernel can be compiled for."""
    if getattr(best, field) == 0:
        return
    least = case.most if field == "block" and case.kernel.startswith(HOLDS_ALL) else 0
    for value in VALUES[field]:
        if value >= least and value != getattr(best, field):
            yield best._replace(**{field: value})


def uses(device: torch.device) -> dict[Case, list[Use]]:
    """The cases of the table that the operators ask for at production sizes, and which operators do."""
    found: dict[Case, list[Use]] = {}
    for operator in CASES:
        for name in operator.dtypes:
            dtype = DTYPES[name]
            if name == "fp16":  # has the configuration of bf16
                continue
            with asked_for() as cases:
                results(operator, operator.leaves(dtype, device, 1), True)
            for case in dict.fromkeys(cases):
                found.setdefault(case, []).append((operator, dtype))
    return found


class UnfitError(Exception):
    """A configuration that is not to be used here."""


def seconds_of(users: list[Use], device: torch.device, timesteps: int, wanted: list[list[Tensor]]) -> float:
    """Of forward and backward pass of these operators.

    Raises UnfitError where a kernel spills, or where results are not those `wanted`, which are others only by rounding.
    """
    from pgat_kernels.triton_kernels.launch import compiled_kernels

    total = 0.0
    for i, (operator, dtype) in enumerate(users):
        leaves = operator.leaves(dtype, device, timesteps)
        with compiled_kernels() as ran:
            found = results(operator, leaves, True)
        if any(kernel is not None and kernel.n_spills for kernel in ran):
            raise UnfitError("it spills registers")
        if not all(_alike(a, b, dtype) for a, b in zip(found, wanted[i], strict=True)):
            raise UnfitError("its results differ")
        g = gradient(found[0])
        total += milliseconds(lambda o=operator, x=leaves, g=g: results(o, x, True, g), device) / 1e3
    return total


def _alike(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    error = float((a.double() - b.double()).norm())
    return error <= 8 * torch.finfo(dtype).eps * (float(b.double().norm()) + b.numel() ** 0.5 * 1e-3)


def fastest(
    case: Case, start: Configuration, seconds: Callable[[Configuration], float], say: Callable[[str], None]
) -> Configuration:
    """From `start` on, one number after the other; `seconds` raises where a configuration cannot be used."""
    best, least = start, seconds(start)
    first = least
    for field in VALUES:
        for candidate in list(candidates(case, best, field)):
            try:
                found = seconds(candidate)
            except torch.AcceleratorError:
                raise  # nothing more can be measured in this process
            except Exception as error:  # whatever triton says of one that does not fit
                say(f"    {tuple(candidate)}: {type(error).__name__}: {str(error).strip()[:100]}")
                continue
            if found <= FASTER * least:
                best, least = candidate, found
    say(f"{case.kernel}, {8 * case.itemsize} bits, up to {case.most}: {tuple(start)} {1e3 * first:.3f} ms -> "
        f"{tuple(best)} {1e3 * least:.3f} ms")  # fmt: skip
    return best


def tuned(
    case: Case,
    start: Configuration,
    users: list[Use],
    device: torch.device,
    timesteps: int,
    say: Callable[[str], None],
) -> Configuration:
    """The fastest for what these operators do, from `start` on."""
    with trial(case, start):
        wanted = [results(operator, operator.leaves(dtype, device, timesteps), True) for operator, dtype in users]

    def seconds(chosen: Configuration) -> float:
        with trial(case, chosen):
            return seconds_of(users, device, timesteps, wanted)

    return fastest(case, start, seconds, say)


def first_rows(pairs: list[tuple[int, float, float]]) -> int | None:
    """From rows, seconds of kernels and of plain torch, rising: the rows from which on kernels were the faster."""
    least = None
    for rows, kernels, plain in sorted(pairs, reverse=True):
        if kernels > FASTER * plain:
            break
        least = rows
    return least


def against_plain(
    operator: Operator, dtype: torch.dtype, device: torch.device, timesteps: int, compiling: bool
) -> list[tuple[int, float, float]]:
    """Rows, seconds of kernels, seconds of plain torch: compiled or not, what is faster; endless without memory."""
    compiled = torch.compile(operator.run, dynamic=True)
    found = []
    for part in LADDER:
        steps = max(1, timesteps // part)
        leaves = operator.leaves(dtype, device, steps)
        g = gradient(results(operator, leaves, True)[0])
        by_kernels = milliseconds(lambda x=leaves, g=g: results(operator, x, True, g), device) / 1e3
        plain = float("inf")
        for run in (operator.run, compiled) if compiling else (operator.run,):
            own = operator._replace(run=run)
            try:
                taken = milliseconds(lambda o=own, x=leaves, g=g: results(o, x, False, g), device) / 1e3
            except torch.OutOfMemoryError:
                continue
            plain = min(plain, taken)
        found.append((operator.rows(steps), by_kernels, plain))
    return found


def bucket(size: int) -> int:
    """The largest size that what is measured of this one is taken for."""
    return 1 << (size - 1).bit_length()


def tune(
    device: torch.device,
    file: Path,
    timesteps: int,
    limit: float,
    compiling: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Measure everything, and write `file` whenever something has been."""
    gpu, deadline = gpu_of(device), time.monotonic() + limit
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    before = read(file).get(gpu) if file.exists() else None
    entry = Measured(name, dict(before.configurations), dict(before.from_rows)) if before else Measured(name, {}, {})

    def write() -> None:
        entries = json.loads(file.read_text()) if file.exists() else {}
        entries[gpu] = as_json(entry)
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(entries, indent=1) + "\n")
        whole.replace(file)

    for case, users in uses(device).items():
        if time.monotonic() > deadline:
            say(f"{case.kernel}, {8 * case.itemsize} bits, up to {case.most}: not measured, no time is left")
            continue
        start = entry.configurations.get(case) or configuration(*case, gpu)
        entry.configurations[case] = tuned(case, start, users, device, timesteps, say)
        write()
    again: set[Case] = set()
    for operator in CASES:
        for dtype in [DTYPES[name] for name in operator.dtypes if name != "fp16"]:
            case = Case(operator.operator, dtype.itemsize, bucket(operator.size))
            words = f"{case.kernel}, {operator.shape}, {8 * case.itemsize} bits"
            if time.monotonic() > deadline:
                say(f"{words}: not compared with plain torch, no time is left")
                continue
            pairs = against_plain(operator, dtype, device, timesteps, compiling)
            least = first_rows(pairs)
            if case in again:  # several shapes of one case: all of them must be faster
                known = entry.from_rows[case]
                least = None if known is None or least is None else max(known, least)
            again.add(case)
            entry.from_rows[case] = least
            shown = ", ".join(f"{rows} rows {1e3 * a:.3f} / {1e3 * b:.3f} ms" for rows, a, b in pairs)
            say(f"{words}: kernels / plain torch {shown}: {'never' if least is None else f'from {least} rows on'}")
            write()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE, help="the file (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1500, help="what does not begin within it stays as it was")
    parser.add_argument("--timesteps", type=int, default=TIMESTEPS, help="of the largest inputs")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here: this measures kernels on a GPU")
    tune(torch.device("cuda"), args.out, args.timesteps, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
