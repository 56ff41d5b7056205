"""Model of the sizes from which kernels are faster: the lines of the shipped table that no GPU has measured.

    python -m bench.gpu.modelled

For every operator of the model at production sizes and below (`bench.gpu.tune.LADDER`), in its first dtype, forward and
backward pass together, the time of the kernels is compared with that of plain torch on tensors without data:

- kernels: each launch by `bench.gpu.cost_model`, with the instructions of its machine code where they can be counted,
  and the operations of torch between the launches, as below;
- plain torch: what a perfect compiler would reach. Products as in `cost_model`; all other operations between two
  products together are one launch, which reads each of its inputs once and writes each result that is used later.

So a kernel is listed only if it beats plain torch at its best. Lines that were measured stay. Commit the file
`kernels/pgat_kernels/tuning_table.json` together with the output of `bench.gpu.cost_model`.
"""

import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from bench.gpu.cost_model import (
    GPUS,
    ISSUE_COUNTED,
    LAUNCH_SECONDS,
    Gpu,
    Work,
    bytes_of,
    tensors_in,
    work_of_launch,
)
from bench.gpu.kernel_cases import CASES, DTYPES, TIMESTEPS, Case, Implementations, gradient, results
from bench.gpu.machine_code import Issued, issued
from bench.gpu.tune import LADDER, case_of, first_rows, words_of, write_entry
from bench.processes import make_parser
from pgat_kernels.instrumentation import Launch, record_launches
from pgat_kernels.tuning_table import FILE, Entry, Threshold, read

L40S: Final = Gpu("L40S", "sm_89", 362e12, 91.6e12, 0.864e12, 142, 2.52e9)
"""The GPU of compute capability 8.9 that is modelled. Source: NVIDIA's data sheet."""
MODELLED: Final = {gpu.architecture: gpu for gpu in (*reversed(GPUS), L40S)}
"""Architecture -> its first GPU."""
COUNTED: Final = (*ISSUE_COUNTED, "sm_89")
"""Architectures whose instructions are counted."""
META: Final = torch.device("meta")


class Operation(NamedTuple):
    """An operation of torch that is not a view."""

    product: Work | None
    """None if it is no product."""
    inputs: list[Tensor]
    outputs: list[Tensor]


class Trace(Implementations):
    """Mode that records the operations on tensors without data."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "aten" and _formula(function) is None:
            with self:  # a composite operation counts as its parts
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if function.namespace == "pgat":  # its parts are recorded
            return result
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        known = {_storage(x) for x in inputs}
        is_view = not function._schema.is_mutable and all(_storage(x) in known for x in outputs)
        if is_view or function.overloadpacket.__name__.startswith(("empty", "new_empty")):
            return result
        formula = _formula(function)
        product = None
        if formula is not None:
            flops, size = formula(*args, **(kwargs or {}), out_val=result), sum(map(bytes_of, inputs + outputs))
            float32 = all(x.dtype.itemsize >= 4 for x in inputs)
            product = Work(function.overloadpacket.__name__, "product", int(flops), size, float32)
        self.operations.append(Operation(product, inputs, outputs))
        return result


def _formula(function: Any) -> Any:
    """Return the formula of the FLOPs of a product, also of one in place; None for other operations."""
    packet = function.overloadpacket
    return flop_registry.get(getattr(torch.ops.aten, packet.__name__.removesuffix("_"), packet))


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def fused_seconds(operations: list[Operation], kept: list[Tensor], gpu: Gpu) -> float:
    """Return the seconds of `operations` on `gpu` if everything between two products is one launch.

    Args:
        operations: in the order in which they run; the tensors keep their storages from being used again.
        kept: tensors that are used after the last operation.
        gpu: a GPU.
    """
    last_use = {_storage(x): i for i, operation in enumerate(operations) for x in operation.inputs}
    last_use |= {_storage(x): len(operations) for x in kept}
    total = 0.0
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}

    def end_group(end: int) -> float:
        moved = sum(reads.values()) + sum(size for storage, size in writes.items() if last_use.get(storage, -1) >= end)
        seconds = max(moved / gpu.bandwidth, LAUNCH_SECONDS) if writes else 0.0
        reads.clear()
        writes.clear()
        return seconds

    for i, (product, inputs, outputs) in enumerate(operations):
        if product is not None:
            total += end_group(i) + product.seconds(gpu)
            continue
        for x in inputs:
            if _storage(x) not in writes:
                reads[_storage(x)] = max(reads.get(_storage(x), 0), bytes_of(x))
        for x in outputs:
            writes[_storage(x)] = max(writes.get(_storage(x), 0), bytes_of(x))
    return total + end_group(len(operations))


def traced(
    case: Case, dtype: torch.dtype, timesteps: int, kernels: bool, architecture: str
) -> tuple[list[Operation], list[Tensor], list[Launch]]:
    """Return the operations of torch in both passes of an operator, their results, and the launches of kernels."""
    leaves = case.leaves(dtype, META, timesteps)
    with record_launches(architecture) as launches:
        with Implementations():
            g = gradient(case.run(leaves, kernels))
        launches.clear()
        with Trace() as trace:
            tensors = results(case, leaves, kernels, g)
        return trace.operations, tensors, list(launches)


class Codes:
    """What a program of each kind of launch executes on one architecture, which takes seconds to find out."""

    def __init__(self, architecture: str) -> None:
        self._architecture, self._known = architecture, dict[Any, Issued | None]()

    def of(self, launch: Launch) -> Issued | None:
        """Return what a program of `launch` executes; None where instructions are not counted."""
        if self._architecture not in COUNTED:
            return None
        # The number of rows decides how many programs run, not what one executes.
        sizes = [(name, value) for name, value in launch.named.items() if name not in ("rows", "graphs")]
        dtypes = [x.dtype for x in launch.tensors]
        key = launch.kernel.__name__, launch.configuration, str(sizes), str(dtypes)
        if key not in self._known:
            self._known[key] = issued(launch, self._architecture)
        return self._known[key]


def modelled(
    case: Case, dtype: torch.dtype, gpu: Gpu, codes: Codes, timesteps: int = TIMESTEPS
) -> list[tuple[int, float, float]]:
    """Return rows, seconds of kernels, and seconds of plain torch for each size in `LADDER`."""
    timings = []
    for divisor in LADDER:
        steps = max(1, timesteps // divisor)
        operations, tensors, launches = traced(case, dtype, steps, True, gpu.architecture)
        by_kernels = fused_seconds(operations, tensors, gpu)
        by_kernels += sum(work_of_launch(launch, codes.of(launch)).seconds(gpu) for launch in launches)
        operations, tensors, _ = traced(case, dtype, steps, False, gpu.architecture)
        timings.append((case.rows(steps), by_kernels, fused_seconds(operations, tensors, gpu)))
    return timings


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, default=FILE, help="the file (%(default)s)")
    args = parser.parse_args()
    entries = read(args.out) if args.out.exists() else {}
    for architecture, gpu in sorted(MODELLED.items()):
        entry, codes = entries.get(architecture, Entry(gpu.name, {}, {})), Codes(architecture)
        for case in CASES:
            if case.threshold is None:
                continue
            dtype = DTYPES[case.dtypes[0]]
            line = case_of(case, dtype)
            if line in entry.thresholds and entry.thresholds[line].source == "measured":
                continue
            pairs = modelled(case, dtype, gpu, codes)
            threshold = entry.thresholds[line] = Threshold(first_rows(pairs), "modelled")
            times = ", ".join(f"{rows} rows {1e3 * a:.3f} / {1e3 * b:.3f} ms" for rows, a, b in pairs)
            print(f"{gpu.name}: {words_of(line)}: kernels / plain torch {times}: from {threshold.rows}", flush=True)
        write_entry(args.out, architecture, entry)
    return 0


if __name__ == "__main__":
    sys.exit(main())
