"""Model of the time of a training step with kernels on GPUs: bytes, FLOPs and launches. Not a measurement.

    python -m bench.gpu.cost_model --config configs/production_batched.yaml --out OUT

A training step (forward, backward) of the backend `triton` is traced on tensors without data. Every launch and every
operation of torch counts the FLOPs of its products and the bytes of its arguments and results, each once: the minimum
traffic if nothing is read twice. A launch takes the longer of FLOPs / peak and bytes / bandwidth (the roofline), and
never less than `LAUNCH_SECONDS`. Elementwise operations of torch are counted one by one, as they run eagerly; compiled
they are fused, so they are listed separately. Random numbers, exponentials and the like are not counted: where a kernel
computes many per byte (dropout within attention), the modelled time is too low. It is a lower bound, to compare
measurements with.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, shape_wrapper

from bench.backend_spec import PRECISIONS, Variant, build
from bench.gpu.kernel_cases import Implementations
from bench.gpu.time_model import EPOCH_STEPS, GPUS, Gpu, Work, bytes_of, work_of_launches
from bench.measure import forget_data, without_data
from bench.processes import Record, positive
from bench.step import optimizer_step
from pgat_fast import load_config
from pgat_fast.config.schema import Config
from pgat_fast.data.windows import example
from pgat_fast.errors import PgatError
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.model.precision import Precision
from pgat_fast.plan.trace import MISSING_FORMULAS
from pgat_kernels.dispatch import Kernels
from pgat_kernels.launch_configs import asked_for, configuration
from pgat_kernels.ops.chunked_ops import auto_chunk
from pgat_kernels.tuning_table import Case

_FORMULAS: Final = {**flop_registry, **{operator: shape_wrapper(f) for operator, f in MISSING_FORMULAS.items()}}
_AT_ONCE: Final = ("pgat::attention", "pgat::attention_backward")
"""Operators without kernels, counted by their formula: a GPU computes them differently from a CPU."""


class Count(Implementations):
    """Mode that adds the work of operations on tensors without data to `work`."""

    def __init__(self, launches: list[Any]) -> None:
        super().__init__()
        self.work: list[Work] = []
        self.launches = launches

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "aten" and function.overloadpacket not in _FORMULAS:
            with self:  # a composite operation counts as its parts
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        if function._schema.name in _AT_ONCE:
            result = function(*args, **(kwargs or {}))
        else:
            result = super().__torch_dispatch__(function, types, args, kwargs)
        if function.namespace == "pgat" and function._schema.name not in _AT_ONCE:
            self._take_launches()
            return result
        inputs, outputs = list(_tensors((args, kwargs or {}))), list(_tensors(result))
        input_storages = {id(x.untyped_storage()) for x in inputs}
        writes = function._schema.is_mutable or any(id(x.untyped_storage()) not in input_storages for x in outputs)
        if not writes or function.__name__.startswith(("empty", "new_empty")):
            return result  # a view, or no memory traffic
        formula = _FORMULAS.get(function.overloadpacket)
        flops = int(formula(*args, **(kwargs or {}), out_val=result)) if formula else 0
        size = sum(map(bytes_of, inputs + outputs))
        is_wide = all(x.dtype.itemsize >= 4 for x in inputs)
        group = "product" if flops else "elementwise"
        self.work.append(Work(function.overloadpacket.__name__, group, flops, size, is_wide))
        return result

    def _take_launches(self) -> None:
        self.work += work_of_launches(self.launches)
        self.launches.clear()


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from _tensors(part)


def work_of_a_step(config: Config, precision: Precision, batch: int, architecture: str) -> list[Work]:
    """Return the work of forward and backward pass of the backend `triton`, configured for `architecture`."""
    from pgat_kernels.triton.launch import record_launches

    device = torch.device("cpu")  # for tensors without data; chunks are those of a GPU
    model = build(config, Variant("torch", precision))
    assert isinstance(model, FastPGAT)
    model.set_execution(replace(model.execution, kernels=Kernels.ON))
    with (
        patch(
            "pgat_fast.model.optimized.part.auto_chunk",
            lambda rows, size, _: auto_chunk(rows, size, torch.device("cuda")),
        ),
        without_data(),
        record_launches(architecture) as launches,
    ):
        forget_data(model)
        step = optimizer_step(model, config, precision, device)
        inputs = example(config.model, batch)
        with Count(launches) as count:
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


def model_of_config(path: str, batch: int, precision: Precision, gpus: Sequence[Gpu] = GPUS) -> Record:
    """Return the model of the configuration file `path`. Raises PgatError if it is invalid."""
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
            with asked_for() as requested:
                step_work = work_of_a_step(config, precision, batch, gpu.architecture)
            cases = set(requested)
            blocks = tuple(configuration(*case, gpu.architecture).block for case in sorted(cases))
            work[blocks] = step_work
        rows = table(work[blocks], gpu)
        result["gpus"][gpu.name] = {"peaks": gpu._asdict(), "totals": totals(rows), "rows": rows}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    args = parser.parse_args()
    try:
        result = model_of_config(args.config, args.batch, args.precision)
    except PgatError as error:
        parser.error(str(error))
    print(as_markdown(result))
    if args.out:
        args.out.with_suffix(".md").write_text(as_markdown(result))
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
