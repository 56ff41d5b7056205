"""Model of the time of a training step with kernels on GPUs: bytes, FLOPs and launches. Not a measurement.

    python -m bench.gpu.cost_model --config configs/production_batched.yaml --out OUT

A training step (forward, backward) of the backend `triton` is traced on tensors without data. Every launch and every
operation of torch counts the FLOPs of its products and the bytes of its arguments and results, each once: the minimum
traffic if nothing is read twice. A launch takes the longer of FLOPs / peak and bytes / bandwidth (the roofline), and
never less than `LAUNCH_SECONDS`. Elementwise operations of torch are counted one by one, as they run eagerly; compiled
they are fused, so they are listed separately. Random numbers, exponentials and the like are not counted: where a kernel
computes many per byte (dropout within attention), the modelled time is too low. It is a lower bound, to compare
measurements with.

Importing this module needs torch and pgat_kernels alone: `bench.gpu.measure` uses the model of a launch on machines
where nothing else is installed.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from bench.gpu.kernel_cases import Implementations
from bench.processes import make_parser
from bench.result_files import Record
from pgat_fast.utils.io import write_atomically, write_json
from pgat_kernels.dispatch import Kernels
from pgat_kernels.instrumentation import record_configurations
from pgat_kernels.launch_configs import configuration
from pgat_kernels.ops.chunk_sizes import auto_chunk
from pgat_kernels.tuning_table import Case

if TYPE_CHECKING:
    from pgat_fast.config.schema import Config
    from pgat_fast.model.precision import Precision


class Gpu(NamedTuple):
    """A GPU with its dense peak rates. Source: the makers' data sheets (SXM boards)."""

    name: str
    architecture: str
    flops_16: float
    """FLOPs per second of 16-bit products."""
    flops_32: float
    """FLOPs per second of IEEE float32 products."""
    bandwidth: float
    """Bytes per second."""


GPUS: Final = (
    Gpu("A100", "sm_80", 312e12, 19.5e12, 2.04e12),
    Gpu("H100", "sm_90", 989e12, 67e12, 3.35e12),
    Gpu("H200", "sm_90", 989e12, 67e12, 4.8e12),
    Gpu("B200", "sm_100", 2250e12, 75e12, 8e12),
)

LAUNCH_SECONDS: Final = 3e-6
"""Minimum seconds of an operation: about the gap between two kernels of one stream on a GPU."""

EPOCH_WINDOWS: Final = 6736
"""Training windows of the production data."""
EPOCH_STEPS: Final = 421
"""Steps of an epoch of the production data at a batch of 16."""


class Work(NamedTuple):
    """FLOPs and memory traffic of an operation."""

    name: str
    group: str
    """`kernel`, `product` (of torch) or `elementwise` (all other operations of torch)."""
    flops: int
    bytes: int
    float32: bool
    """Whether its products are in float32."""

    def seconds(self, gpu: Gpu) -> float:
        peak = gpu.flops_32 if self.float32 else gpu.flops_16
        return max(self.flops / peak, self.bytes / gpu.bandwidth, LAUNCH_SECONDS)


def bytes_of(x: Tensor) -> int:
    """Return the bytes of a tensor in memory; an expanded dimension counts once."""
    return x.element_size() * math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


def work_of_launches(launches: list[Any]) -> list[Work]:
    """Return the work of recorded kernel launches."""
    return [
        Work(
            launch.kernel.__name__,
            "kernel",
            launch.flops,
            sum(bytes_of(x) for x in launch.tensors if x.dim()),
            all(x.dtype.itemsize >= 4 for x in launch.tensors),
        )
        for launch in launches
    ]


# --- a training step -------------------------------------------------------------------------------------------------

_AT_ONCE: Final = ("pgat::attention", "pgat::attention_backward")
"""Operators without kernels, counted by their formula: a GPU computes them differently from a CPU."""


class Count(Implementations):
    """Mode that adds the work of operations on tensors without data to `work`."""

    def __init__(self, launches: list[Any], formulas: Mapping[Any, Callable[..., int]]) -> None:
        """
        Args:
            launches: recorded launches; they are removed when they are counted.
            formulas: operators of torch -> their FLOP formulas.
        """
        super().__init__()
        self.work: list[Work] = []
        self._launches, self._formulas = launches, formulas

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "aten" and function.overloadpacket not in self._formulas:
            with self:  # a composite operation counts as its parts
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        if function._schema.name in _AT_ONCE:
            result = function(*args, **(kwargs or {}))
        else:
            result = super().__torch_dispatch__(function, types, args, kwargs)
        if function.namespace == "pgat" and function._schema.name not in _AT_ONCE:
            self.work += work_of_launches(self._launches)
            self._launches.clear()
            return result
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        input_storages = {id(x.untyped_storage()) for x in inputs}
        writes = function._schema.is_mutable or any(id(x.untyped_storage()) not in input_storages for x in outputs)
        if not writes or function.__name__.startswith(("empty", "new_empty")):
            return result  # a view, or no memory traffic
        formula = self._formulas.get(function.overloadpacket)
        flops = int(formula(*args, **(kwargs or {}), out_val=result)) if formula else 0
        size = sum(map(bytes_of, inputs + outputs))
        in_float32 = all(x.dtype.itemsize >= 4 for x in inputs)
        group = "product" if flops else "elementwise"
        self.work.append(Work(function.overloadpacket.__name__, group, flops, size, in_float32))
        return result


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def work_of_a_step(config: "Config", precision: "Precision", batch: int, architecture: str) -> list[Work]:
    """Return the work of forward and backward pass of the backend `triton`, configured for `architecture`."""
    from bench.backend_spec import BackendSpec, build
    from bench.measure import forget_data, without_data
    from bench.step import optimizer_step
    from pgat_fast.data.windows import example
    from pgat_fast.model.optimized.pgat import FastPGAT
    from pgat_fast.plan.trace import MISSING_FORMULAS
    from pgat_kernels.instrumentation import record_launches

    formulas = {**flop_registry, **{operator: shape_wrapper(f) for operator, f in MISSING_FORMULAS.items()}}
    device = torch.device("cpu")  # for tensors without data; chunks are those of a GPU
    model = build(config, BackendSpec("torch", precision))
    assert isinstance(model, FastPGAT)
    model.set_execution(replace(model.execution, kernels=Kernels.ON))
    with (
        patch(
            "pgat_fast.model.optimized.fast_module.auto_chunk",
            lambda rows, size, _: auto_chunk(rows, size, torch.device("cuda")),
        ),
        without_data(),
        record_launches(architecture) as launches,
    ):
        forget_data(model)
        step = optimizer_step(model, config, precision, device)
        inputs = example(config.model, batch)
        count = Count(launches, formulas)
        with count:
            step.loss(inputs).backward()
    return count.work


def table(work: list[Work], gpu: Gpu) -> dict[str, Record]:
    """Return name -> launches, FLOPs, bytes and seconds of kernels, products and elementwise operations of a step."""
    rows: dict[str, Record] = {}
    for operation in work:
        name = operation.name if operation.group == "kernel" else f"torch, {operation.group}"
        row = rows.setdefault(name, {"group": operation.group, "launches": 0, "flops": 0, "bytes": 0, "seconds": 0.0})
        row["launches"] += 1
        row["flops"] += operation.flops
        row["bytes"] += operation.bytes
        row["seconds"] += operation.seconds(gpu)
    return dict(sorted(rows.items(), key=lambda item: (item[1]["group"], item[0])))


def totals(rows: dict[str, Record]) -> Record:
    """Return the seconds of a step with kernels and products alone, and with all operations as they run eagerly."""
    least = sum(row["seconds"] for row in rows.values() if row["group"] != "elementwise")
    return {"kernels_and_products": least, "eager": sum(row["seconds"] for row in rows.values())}


def as_markdown(result: Record) -> str:
    """Return the committed tables."""
    lines = [
        f"# A model of the time of a training step: {result['config']}, batch {result['batch']}, {result['precision']}",
        "",
        "**A model, not a measurement**: the longer of FLOPs / peak and bytes / bandwidth of each launch, by formulas.",
        f"`{result['command']}`. No GPU has run these kernels yet: not measured yet.",
        "",
        "| | A100 | H100 | H200 | B200 |",
        "|---|---|---|---|---|",
    ]
    labels = {
        "kernels_and_products": "kernels and products, a step, ms",
        "eager": "with all else of torch unfused, a step, ms",
    }
    for key, label in labels.items():
        cells = " | ".join(f"{gpu['totals'][key] * 1e3:.1f}" for gpu in result["gpus"].values())
        lines.append(f"| {label} | {cells} |")
    for key, label in labels.items():
        cells = " | ".join(f"{gpu['totals'][key] * result['epoch_steps']:.1f}" for gpu in result["gpus"].values())
        lines.append(f"| {label.replace('a step, ms', 'an epoch, s')} | {cells} |")
    lines += [
        "",
        "| | launches | GFLOP | GB | A100, ms | H100, ms | H200, ms | B200, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = next(iter(result["gpus"].values()))["rows"]
    for name, row in first.items():
        cells = " | ".join(f"{gpu['rows'][name]['seconds'] * 1e3:.2f}" for gpu in result["gpus"].values())
        numbers = f"{row['launches']} | {row['flops'] / 1e9:.1f} | {row['bytes'] / 1e9:.2f}"
        lines.append(f"| {name.removeprefix('_').removesuffix('_kernel')} | {numbers} | {cells} |")
    return "\n".join([*lines, ""])


def model_of_config(path: str, batch: int, precision: "Precision", gpus: Sequence[Gpu] = GPUS) -> Record:
    """Return the model of the configuration file `path`. Raises PgatError if it is invalid."""
    from pgat_fast import load_config

    config = load_config(path)
    command = f"python -m bench.gpu.cost_model --config {path} --batch {batch} --precision {precision}"
    result: Record = {
        "is": "a model, not a measurement",
        "command": command,
        "config": path,
        "batch": batch,
        "precision": precision,
        "epoch_steps": EPOCH_STEPS,
        "gpus": {},
    }
    work: dict[tuple[int, ...], list[Work]] = {}
    cases: set[Case] = set()
    for gpu in gpus:
        # Only the rows of a tile (`block`) affect what is read, written and launched.
        blocks = tuple(configuration(*case, gpu.architecture).block for case in sorted(cases))
        if not cases or blocks not in work:
            with record_configurations() as requested:
                step_work = work_of_a_step(config, precision, batch, gpu.architecture)
            cases = set(requested)
            blocks = tuple(configuration(*case, gpu.architecture).block for case in sorted(cases))
            work[blocks] = step_work
        rows = table(work[blocks], gpu)
        result["gpus"][gpu.name] = {"peaks": gpu._asdict(), "totals": totals(rows), "rows": rows}
    return result


def main() -> int:
    """Print and write the model of a configuration."""
    from pgat_fast.errors import PgatError
    from pgat_fast.model.precision import Precision

    parser = make_parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=get_args(Precision), default="bf16")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    args = parser.parse_args()
    try:
        result = model_of_config(args.config, args.batch, args.precision)
    except PgatError as error:
        parser.error(str(error))
    print(as_markdown(result))
    if args.out:
        write_atomically(args.out.with_suffix(".md"), as_markdown(result).encode())
        write_json(args.out.with_suffix(".json"), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
