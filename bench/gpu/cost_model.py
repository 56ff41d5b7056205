"""Model of the time of a training step with kernels on GPUs. Not a measurement.

    python -m bench.gpu.cost_model --config configs/production_batched.yaml --out OUT

A training step of the backend `triton`, as training runs it (forward and backward pass with dropout, clipping, Adam,
determinism), is traced on tensors without data, with the sizes of chunks and the implementations of a GPU. Every
launch takes the longest of

- its bytes / bandwidth: its arguments and results, each once, the minimum if nothing is read twice;
- its FLOPs / peak: for kernels of this package those that their tensor-core instructions execute, padding and
  duplicates included; for operations of torch by torch's formulas;
- its issue time, for kernels of this package: the instructions of all warps / what all schedulers can issue
  (`machine_code`), in the configuration that is shipped;
- `LAUNCH_SECONDS`.

For B200 the instructions are not counted: the loops of its machine code are not those of triton's IR.

Operations of torch are counted one by one, as they run in a CUDA graph without `torch.compile`, which would fuse some
of them; how many is not modelled. Waiting for memory, uneven last waves and the like are not counted either: it is a
lower bound of each launch, to compare measurements with.

Importing this module needs torch and pgat_kernels alone: `bench.gpu.measure` uses the model of a launch on machines
where nothing else is installed.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from bench.gpu.kernel_cases import Implementations
from bench.gpu.machine_code import Issued, issued, source_of
from bench.processes import make_parser
from bench.result_files import Record
from pgat_fast.utils.io import write_atomically, write_json
from pgat_kernels.dispatch import Kernels
from pgat_kernels.instrumentation import Launch

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
    multiprocessors: int
    clock: float
    """Cycles per second."""

    @property
    def issue_rate(self) -> float:
        """Instructions per second of all schedulers together, each for a whole warp."""
        return self.multiprocessors * 4 * self.clock


GPUS: Final = (
    Gpu("A100", "sm_80", 312e12, 19.5e12, 2.04e12, 108, 1.41e9),
    Gpu("H100", "sm_90", 989e12, 67e12, 3.35e12, 132, 1.83e9),
    Gpu("H200", "sm_90", 989e12, 67e12, 4.8e12, 132, 1.83e9),
    Gpu("B200", "sm_100", 2250e12, 75e12, 8e12, 148, 1.85e9),
)

ISSUE_COUNTED: Final = ("sm_80", "sm_90")
"""Architectures whose instructions are counted."""

SUSTAINED: Final = 0.8
"""Share of the peak of 16-bit products that large products of libraries reach, within the power that a board may take.
An assumption: not measured here."""

LAUNCH_SECONDS: Final = 2e-6
"""Minimum seconds of a launch: about the distance of two kernels in a CUDA graph."""

EPOCH_WINDOWS: Final = 6736
"""Training windows of the production data."""
EPOCH_STEPS: Final = 421
"""Steps of an epoch of the production data at a batch of 16."""


class Work(NamedTuple):
    """What a launch computes, moves and issues."""

    name: str
    group: str
    """`kernel`, `product` (of torch) or `elementwise` (all other operations of torch)."""
    flops: int
    bytes: int
    float32: bool
    """Whether its products are in float32."""
    launches: int = 1
    instructions: int = 0
    """Instructions of all its warps; 0 if they are unknown."""
    where: str = ""
    """The operator of this package within which torch executes it; empty outside of all of them."""

    def limits(self, gpu: Gpu) -> dict[str, float]:
        """Return the seconds that each of its limits takes on `gpu`."""
        peak = gpu.flops_32 if self.float32 else SUSTAINED * gpu.flops_16
        return {
            "flops": self.flops / peak,
            "bytes": self.bytes / gpu.bandwidth,
            "issue": self.instructions / gpu.issue_rate,
            "launch": self.launches * LAUNCH_SECONDS,
        }

    def seconds(self, gpu: Gpu) -> float:
        """Return the longest of its limits."""
        return max(self.limits(gpu).values())


def bytes_of(x: Tensor) -> int:
    """Return the bytes of a tensor in memory; an expanded dimension counts once."""
    return x.element_size() * math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


def work_of_launch(launch: Launch, code: Issued | None = None) -> Work:
    """Return the work of a recorded launch of a kernel.

    Args:
        launch: the launch.
        code: what a program of it executes. Without it, nothing is known of its instructions, and its FLOPs are those
            of its products without padding.
    """
    float32 = all(x.dtype.itemsize >= 4 for x in launch.tensors)
    flops = launch.flops if code is None or not code.product_flops else code.product_flops * launch.programs
    instructions = 0 if code is None else code.instructions * launch.programs
    size = sum(bytes_of(x) for x in launch.tensors if x.dim())
    return Work(_label(launch), "kernel", flops, size, float32, instructions=instructions)


_SIZES: Final = {"NODES": "tokens", "DEPTH": "deep", "HIDDEN": "hidden", "RANK": "of low rank"}
"""Sizes that distinguish launches of one kernel, and their names in the table."""


def _label(launch: Launch) -> str:
    """Return the name of a kernel with its sizes, such as `edge_attention_fwd, 169 tokens, 26 deep`."""
    name = launch.kernel.__name__.removeprefix("_").removesuffix("_kernel")
    sizes = [f"{launch.named[size]} {words}" for size, words in _SIZES.items() if launch.named.get(size)]
    return ", ".join([name, *sizes])


# --- a training step -------------------------------------------------------------------------------------------------

_TENSORS_OF_A_LAUNCH: Final = {1: 110, 2: 64, 3: 48, 4: 36}
"""Tensors of each of so many lists that one launch of a fused operation over lists takes, and below the elements.
Source: the limits of torch's `MultiTensorApply.cuh`."""
_ELEMENTS_OF_A_LAUNCH: Final = 320 * 65536


class Count(Implementations):
    """Mode that adds the work of operations on tensors without data to `work`, and launches of kernels as they come.

    Memory of `torch.empty` counts as written if torch fills it, as it does for deterministic algorithms unless
    `torch.utils.deterministic.fill_uninitialized_memory` is off.
    """

    def __init__(self, launches: list[Launch], formulas: Mapping[Any, Callable[..., int]]) -> None:
        """
        Args:
            launches: recorded launches; they are moved into `work`.
            formulas: operators of torch -> their FLOP formulas.
        """
        super().__init__()
        self.work: list[Work | Launch] = []
        self._launches, self._formulas = launches, formulas
        self._operators: list[str] = []
        filling: Any = torch.utils.deterministic  # its attribute is unknown to mypy
        self._fills = torch.are_deterministic_algorithms_enabled() and filling.fill_uninitialized_memory

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "aten" and function.overloadpacket not in self._formulas:
            with self:  # a composite operation counts as its parts
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        if function.namespace == "pgat":
            self._operators.append(function._schema.name.removeprefix("pgat::"))
            try:
                result = super().__torch_dispatch__(function, types, args, kwargs)
            finally:
                self._operators.pop()
            self._take_launches()
            return result
        result = super().__torch_dispatch__(function, types, args, kwargs)
        self._take_launches()  # those before this operation
        self._add(function, args, kwargs or {}, result)
        return result

    def _take_launches(self) -> None:
        self.work += self._launches
        self._launches.clear()

    def _add(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name, where = function.overloadpacket.__name__, self._operators[-1] if self._operators else ""
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(result)
        if name.startswith(("empty", "new_empty")):
            size = sum(map(bytes_of, outputs))
            if self._fills and size:
                self.work.append(Work("fill of empty memory", "elementwise", 0, size, True, where=where))
            return
        input_storages = {id(x.untyped_storage()) for x in inputs}
        is_new = any(id(x.untyped_storage()) not in input_storages for x in outputs)
        if not function._schema.is_mutable and not is_new:
            return  # a view
        formula = self._formulas.get(function.overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
        if function._schema.is_mutable:
            outputs = [*outputs, *self._written(function, args, kwargs)]
        in_float32 = all(x.dtype.itemsize >= 4 for x in inputs)
        self.work.append(
            Work(
                name,
                "product" if flops else "elementwise",
                flops,
                sum(map(bytes_of, inputs + outputs)),
                in_float32,
                _launches_over_lists(args) if "foreach" in name or "fused" in name else 1,
                where=where,
            )
        )

    @staticmethod
    def _written(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the arguments that an operation writes, if it returns none of them."""
        schema = function._schema
        if schema.returns:
            return []
        values = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
        names = [argument.name for argument in schema.arguments if argument.alias_info is not None]
        return tensors_in([values.get(name) for name in names])


def _launches_over_lists(args: tuple[Any, ...]) -> int:
    lists = [value for value in args if isinstance(value, list | tuple) and tensors_in(value)]
    tensors = max(map(len, lists), default=1)
    elements = max((sum(x.numel() for x in tensors_in(values)) for values in lists), default=0)
    most = _TENSORS_OF_A_LAUNCH[min(max(1, len(lists)), max(_TENSORS_OF_A_LAUNCH))]
    return max(-(-tensors // most), -(-elements // _ELEMENTS_OF_A_LAUNCH))


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _as_on_cuda(config: "Config") -> Iterator[None]:
    """Take the choices of torch and of this package that training with `config` takes on a GPU."""
    from pgat_fast.plan.fake_ops import cuda_operators
    from pgat_fast.training.rng import restored_generators, use_deterministic_algorithms

    with ExitStack() as stack:
        stack.enter_context(cuda_operators())
        stack.enter_context(restored_generators())
        use_deterministic_algorithms(config.run.deterministic)
        stack.enter_context(patch("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: True))
        yield


def work_of_a_step(
    config: "Config", precision: "Precision", batch: int, architecture: str, *, issue: bool = True
) -> list[Work]:
    """Return the work of a training step of the backend `triton`, configured for `architecture`.

    Args:
        config: its model, training and run settings.
        precision: of the products.
        batch: windows.
        architecture: such as `sm_90`.
        issue: whether to compile the kernels and count their instructions, which takes minutes.

    Raises MismatchError if the instructions of a kernel cannot be counted.
    """
    from bench.backend_spec import BackendSpec, build
    from bench.measure import forget_data, without_data
    from bench.step import optimizer_step
    from pgat_fast.data.windows import example
    from pgat_fast.model.optimized.pgat import FastPGAT
    from pgat_fast.plan.trace import MISSING_FORMULAS
    from pgat_kernels.instrumentation import record_launches

    formulas = {**flop_registry, **{operator: shape_wrapper(f) for operator, f in MISSING_FORMULAS.items()}}
    device = torch.device("cpu")  # of tensors without data, with the choices of a GPU
    model = build(config, BackendSpec("torch", precision))
    assert isinstance(model, FastPGAT)
    model.set_execution(replace(model.execution, kernels=Kernels.ON))
    with _as_on_cuda(config), without_data(), record_launches(architecture) as launches:
        forget_data(model)
        step = optimizer_step(model, config, precision, device)
        for parameter in step.parameters:
            parameter.grad = torch.zeros_like(parameter)
        step.optimizer.step()  # creates its state
        inputs = example(config.model, batch)
        count = Count(launches, formulas)
        with count:
            step.apply(step.accumulate([lambda: inputs]), 1)
        recorded = [*count.work, *launches]
        codes = codes_of([entry for entry in recorded if isinstance(entry, Launch)], architecture) if issue else {}
        return [
            work_of_launch(entry, codes.get(_key(entry))) if isinstance(entry, Launch) else entry for entry in recorded
        ]


def codes_of(launches: Sequence[Launch], architecture: str) -> dict[Any, Issued]:
    """Return what a program of each kind of launch executes; launches of one kind have the same machine code."""
    kinds = {_key(launch): launch for launch in launches}
    with ThreadPoolExecutor() as pool:  # compilation releases the GIL
        codes = pool.map(lambda launch: issued(launch, architecture), kinds.values())
        return dict(zip(kinds, codes, strict=True))


def _key(launch: Launch) -> tuple[Any, ...]:
    """Return what the machine code of a launch depends on, and its loops."""
    source, arguments = source_of(launch)
    values = {name: value for name, value in arguments.items() if isinstance(value, int)}
    return launch.kernel.__name__, launch.configuration, str(source.signature), str(source.constants), str(values)


# --- tables -----------------------------------------------------------------------------------------------------------


LISTED: Final = 0.01
"""Share of a step from which a kind of elementwise operation has a row of its own."""


def table(work: list[Work], gpu: Gpu) -> list[Record]:
    """Return a row for each kind of launch: its totals in a step, and the seconds of each limit.

    Kernels are listed by size, products of torch by the operator that calls them, its attention and other operations by
    name, too.
    """
    rows: dict[tuple[str, str, str], Record] = {}
    for entry in work:
        name = "products" if entry.group == "product" and "attention" not in entry.name else entry.name
        row = rows.setdefault(
            (entry.group, entry.where, name),
            {"name": name, "group": entry.group, "where": entry.where}
            | dict.fromkeys(("launches", "flops", "bytes", "instructions"), 0)
            | {"seconds": 0.0, "limits": dict.fromkeys(("flops", "bytes", "issue", "launch"), 0.0)},
        )
        for total in ("launches", "flops", "bytes", "instructions"):
            row[total] += getattr(entry, total)
        row["seconds"] += entry.seconds(gpu)
        for limit, seconds in entry.limits(gpu).items():
            row["limits"][limit] += seconds
    return sorted(rows.values(), key=lambda row: (row["group"] != "kernel", -row["seconds"], row["name"]))


def shortened(rows: list[Record]) -> list[Record]:
    """Return `rows` with the elementwise operations below `LISTED` of a step as one row, the last one."""
    least = LISTED * sum(row["seconds"] for row in rows)
    small = [row for row in rows if row["group"] == "elementwise" and row["seconds"] < least]
    if not small:
        return rows
    others: Record = {"name": f"{len(small)} other kinds of operations", "group": "elementwise", "where": ""}
    others |= {
        what: sum(row[what] for row in small) for what in ("launches", "flops", "bytes", "instructions", "seconds")
    }
    others["limits"] = {limit: sum(row["limits"][limit] for row in small) for limit in small[0]["limits"]}
    return [*(row for row in rows if row not in small), others]


def totals(rows: list[Record]) -> Record:
    """Return launches, seconds and bytes of a step: of all, and of the groups."""

    def total(what: str, *groups: str) -> Any:
        return sum(row[what] for row in rows if not groups or row["group"] in groups)

    return {
        "launches": total("launches"),
        "seconds": total("seconds"),
        "kernels_and_products_seconds": total("seconds", "kernel", "product"),
        "elementwise_bytes": total("bytes", "elementwise"),
        "elementwise_launches": total("launches", "elementwise"),
    }


def as_markdown(result: Record) -> str:
    """Return the committed tables."""
    gpus = result["gpus"]
    lines = [
        f"# A model of the time of a training step: {result['config']}, batch {result['batch']}, {result['precision']}",
        "",
        "**A model, not a measurement**: of each launch the longest of bytes, FLOPs, instructions to issue, and "
        f"{1e6 * LAUNCH_SECONDS:.0f} us. `{result['command']}`. No GPU has run these kernels yet: not measured yet.",
        "",
        f"| | {' | '.join(gpus)} |",
        "|---" * (1 + len(gpus)) + "|",
    ]
    steps = result["epoch_steps"]
    rows: dict[str, Callable[[Record], str]] = {
        "a step, ms": lambda t: f"{1e3 * t['seconds']:.1f}",
        f"an epoch of {steps} steps, s": lambda t: f"{steps * t['seconds']:.0f}",
        "of a step: kernels and products, ms": lambda t: f"{1e3 * t['kernels_and_products_seconds']:.1f}",
        "launches": lambda t: f"{t['launches']:,}",
        "of these, elementwise operations of torch": lambda t: f"{t['elementwise_launches']:,}",
        "their bytes, GB": lambda t: f"{t['elementwise_bytes'] / 1e9:.1f}",
    }
    lines += [f"| {label} | {' | '.join(f(gpu['totals']) for gpu in gpus.values())} |" for label, f in rows.items()]
    for name, gpu in gpus.items():
        uncounted = "" if gpu["instructions_counted"] else " The instructions of kernels are not counted."
        lines += [
            "",
            f"## {name}",
            "",
            "Milliseconds of a step, and what each limit alone would take. `issue / better` compares the time of "
            f"issuing with the larger of bytes and FLOPs.{uncounted}",
            "",
            "| | launches | ms | bytes | FLOPs | issue | issue / better |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in gpu["rows"]:
            limits = row["limits"]
            ratio = limits["issue"] / max(limits["bytes"], limits["flops"]) if limits["issue"] else None
            place = f" in {row['where']}" if row["where"] else ""
            cells = [f"{1e3 * limits[limit]:.2f}" for limit in ("bytes", "flops", "issue")]
            lines.append(
                f"| {row['name']}{place} | {row['launches']:,} | {1e3 * row['seconds']:.2f} | {' | '.join(cells)} | "
                f"{'' if ratio is None else f'{ratio:.1f}'} |"
            )
    return "\n".join([*lines, ""])


def model_of_config(
    path: str, batch: int, precision: "Precision", gpus: Sequence[Gpu] = GPUS, settings: Sequence[str] = ()
) -> Record:
    """Return the model of the configuration file `path` with `settings`. Raises PgatError if they are invalid."""
    from pgat_fast import load_config

    config = load_config(path, list(settings))
    command = f"python -m bench.gpu.cost_model --config {path} --batch {batch} --precision {precision}"
    command += f" --set {' '.join(settings)}" if settings else ""
    result: Record = {
        "is": "a model, not a measurement",
        "command": command,
        "config": path,
        "batch": batch,
        "precision": precision,
        "epoch_steps": EPOCH_STEPS,
        "gpus": {},
    }
    work: dict[str, list[Work]] = {}
    for gpu in gpus:
        issue = gpu.architecture in ISSUE_COUNTED
        if gpu.architecture not in work:
            work[gpu.architecture] = work_of_a_step(config, precision, batch, gpu.architecture, issue=issue)
        rows = shortened(table(work[gpu.architecture], gpu))
        described = {"peaks": gpu._asdict(), "instructions_counted": issue}
        result["gpus"][gpu.name] = described | {"totals": totals(rows), "rows": rows}
    return result


def main() -> int:
    """Print and write the model of a configuration."""
    from pgat_fast.errors import PgatError
    from pgat_fast.model.precision import Precision

    parser = make_parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=get_args(Precision), default="bf16")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings that differ from the file")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    args = parser.parse_args()
    try:
        result = model_of_config(args.config, args.batch, args.precision, settings=args.set)
    except PgatError as error:
        parser.error(str(error))
    print(as_markdown(result))
    if args.out:
        write_atomically(args.out.with_suffix(".md"), as_markdown(result).encode())
        write_json(args.out.with_suffix(".json"), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
