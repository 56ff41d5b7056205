"""Offline compilation of every kernel: registers, spills, shared memory, instructions. Needs no GPU.

    python -m bench.gpu.static --out bench/results/offline/DATE/static
    python -m bench.gpu.static --check

Every kernel is compiled in its configuration (`pgat_kernels.launch_configs`) at production shapes
(`bench.gpu.kernel_cases`) for every target. `--out` writes a table (.md) and the figures (.json). `--check` compares
with the newest committed ones: a fault is a kernel that spills registers in a loop (on AMD: anywhere), uses atomics,
takes more shared memory than the target has, lacks tensor-core instructions for 16-bit products (HGMMA on sm_90), or
takes more shared memory than before, or a quarter more registers. Exit status 1: there are faults.

Must not run in a process where triton interprets kernels.
"""

import re
import sys
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch

from bench.gpu.kernel_cases import CASES, DTYPES, TIMESTEPS, Implementations, results
from bench.gpu.machine_code import SPILLS, compile_launch, instructions_of, loops_of, run_tool
from bench.processes import make_parser
from bench.result_files import Record, load
from pgat_fast.utils.io import write_atomically, write_json

SHARED_LIMITS: Final = {"sm_80": 166_912, "sm_89": 101_376, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""Target -> bytes of shared memory that a program may use. Source: CUDA C++ Programming Guide, table of compute
capabilities (less the 1 KiB that the system keeps); AMD Instinct MI300 ISA."""

TENSOR_CORE: Final = re.compile(r"[HIDQ]?G?MMA|UTC[A-Z]*MMA|v_mfma|v_wmma")
ATOMIC: Final = re.compile(r"RED(G)?\b|ATOMG?\b|(global|flat|buffer)_atomic")
MORE_REGISTERS: Final = 1.25
"""Factor of growth in registers that is a fault: compilations of one kernel differ (186 and 214 registers have been
seen)."""


def combinations(targets: list[str]) -> list[tuple[str, str, str]]:
    """Return every shape with every dtype of its cases and every target."""
    triples = {(case.shape, dtype, target) for case in CASES for dtype in case.dtypes for target in targets}
    return sorted(triples)


def compile_all(chosen: Collection[tuple[str, str, str]]) -> list[Record]:
    """Return a record for every kernel at each of the `combinations` that are `chosen`."""
    from pgat_kernels.instrumentation import record_launches

    tasks = []
    meta = torch.device("meta")
    for case in CASES:
        for dtype in case.dtypes:
            leaves = case.leaves(DTYPES[dtype], meta, TIMESTEPS)
            for target in SHARED_LIMITS:
                if (case.shape, dtype, target) not in chosen:
                    continue
                with record_launches(target) as launches, Implementations():
                    results(case, leaves, kernels=True)
                tasks += [(launch, case.shape, dtype, target) for launch in launches]

    def one(task: tuple[Any, str, str, str]) -> Record:
        launch, shape, dtype, target = task
        name = launch.kernel.__name__ + (" of the bias" if launch.named.get("OF_BIAS") else "")
        try:
            figures = compile_one(launch, target)
        except Exception as error:
            error.add_note(f"compiling {name}, {shape}, {dtype}, for {target}")
            raise
        return {"kernel": name, "shape": shape, "dtype": dtype, "target": target} | figures

    with ThreadPoolExecutor() as pool:  # compilation releases the GIL
        return list(pool.map(one, tasks))


def compile_one(launch: Any, target: str) -> Record:
    """Compile a kernel as triton would at its launch, and return figures of the machine code."""
    compiled = compile_launch(launch, target)
    inspect_code = _look_at_amd if target.startswith("gfx") else _look_at_nvidia
    figures = inspect_code(compiled.asm["amdgcn" if target.startswith("gfx") else "cubin"])
    return {**launch.configuration._asdict(), "shared": compiled.metadata.shared, **figures}


def _look_at_nvidia(cubin: bytes) -> Record:
    usage, code = run_tool("cuobjdump", "-res-usage", cubin), run_tool("nvdisasm", "-c", cubin)
    instructions = instructions_of(code)
    in_loops = {i for first, last in loops_of(code) for i in range(first, last + 1)}
    resources = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    loads = [name for name in instructions if name.startswith(("LDG", "LDGSTS"))]
    widths = [int(width) for name in loads for width in re.findall(r"\.(\d+)\b", name) if width in ("64", "128")]
    return {
        "registers": int(resources["REG"]),
        "stack": int(resources["STACK"]),
        "spills": sum(name.startswith(SPILLS) for name in instructions),
        "spills_in_loops": sum(name.startswith(SPILLS) for i, name in enumerate(instructions) if i in in_loops),
        "tensor_core": _count(TENSOR_CORE, instructions),
        "atomics": sum(bool(ATOMIC.match(name)) for name in instructions),
        "widest_load_bits": max(widths, default=32 if any(".U16" not in name for name in loads) else 16),
        "instructions": len(instructions),
    }


def _look_at_amd(code: str) -> Record:
    def number(name: str) -> int:
        (value,) = re.findall(rf"^\s*\.{name}:\s*(\d+)", code, flags=re.MULTILINE)
        return int(value)

    instructions = re.findall(r"^\s+((?:v|s|ds|global|flat|buffer)_\w+)", code, flags=re.MULTILINE)
    loads = [name for name in instructions if name.startswith(("global_load", "buffer_load"))]
    sizes = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}
    spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "spills": spills,
        "spills_in_loops": spills,  # where they are is not read from the code
        "tensor_core": _count(TENSOR_CORE, instructions),
        "atomics": sum(bool(ATOMIC.match(name)) for name in instructions),
        "widest_load_bits": max((sizes.get(name.split("_")[2], 16) for name in loads), default=16),
        "instructions": len(instructions),
    }


def _count(pattern: re.Pattern[str], instructions: list[str]) -> dict[str, int]:
    """Return the first part of the instruction name -> number of occurrences."""
    return dict(Counter(name.split(".")[0] for name in instructions if pattern.match(name)))


def faults_of(record: Record, committed: Record | None = None) -> list[str]:
    """Return descriptions of what is wrong with a compiled kernel, and of what has become worse."""
    faults = [f"{record['spills_in_loops']} spills in loops"] if record["spills_in_loops"] else []
    faults += [f"{record['atomics']} atomics"] if record["atomics"] else []
    if record["stack"] and not record["spills"]:  # which are on the stack
        faults.append(f"{record['stack']} bytes of stack")
    limit = SHARED_LIMITS[record["target"]]
    if record["shared"] > limit:
        faults.append(f"{record['shared']} bytes of shared memory, where the target has {limit}")
    if record["dtype"] != "fp32":
        prefix = "HGMMA" if record["target"] == "sm_90" else ""
        if not any(name.startswith(prefix) for name in record["tensor_core"]):
            faults.append(f"no {prefix or 'tensor-core'} instructions")
    for name, factor in (("registers", MORE_REGISTERS), ("shared", 1.0)):
        if committed is not None and record[name] > factor * committed[name]:
            faults.append(f"{name} {committed[name]} -> {record[name]}")
    return faults


KEY: Final = ("kernel", "shape", "dtype", "target")
"""What distinguishes compiled kernels."""


def key_of(record: Record) -> tuple[str, ...]:
    """Return the values of `KEY`."""
    return tuple(record[name] for name in KEY)


def compare(records: list[Record], committed: list[Record]) -> list[str]:
    """Return a line for every fault, and for every kernel that was added or removed."""
    old_by_key, new_keys = {key_of(record): record for record in committed}, {key_of(record) for record in records}
    lines = [
        f"{', '.join(key_of(record))}: {fault}"
        for record in records
        for fault in faults_of(record, old_by_key.get(key_of(record)))
    ]
    lines += [f"{', '.join(key)}: not in the committed figures" for key in sorted(new_keys - old_by_key.keys())]
    return lines + [f"{', '.join(key)}: only in the committed figures" for key in sorted(old_by_key.keys() - new_keys)]


def as_markdown(records: list[Record], version: str) -> str:
    """Return the committed table."""
    columns = [*KEY, "registers", "spills", "spills_in_loops", "stack", "shared", "block", "warps", "stages"]
    rows = [
        "| " + " | ".join(str(record[name]) for name in columns)
        + f" | {', '.join(f'{name} {count}' for name, count in record['tensor_core'].items()) or '-'}"
        + f" | {record['widest_load_bits']} | {record['atomics']} |"
        for record in records
    ]  # fmt: skip
    heads = [*columns, "tensor-core instructions", "widest load, bits", "atomics"]
    return "\n".join(
        [
            "# What the offline compiler makes of the kernels",
            "",
            f"By triton {version}, without a GPU: `python -m bench.gpu.static --out STEM`.",
            "Not measured: how fast they are. float32 products are IEEE, so they take no tensor-core instructions.",
            "Spills are accepted outside of loops where a configuration without them issues more instructions.",
            "",
            "| " + " | ".join(heads) + " |",
            "|" + "---|" * len(heads),
            *rows,
            "",
        ]
    )


def against_committed(chosen: Collection[tuple[str, str, str]]) -> list[str]:
    """Compile every kernel at the `chosen` ones of `combinations`; return what is worse than committed."""
    import triton

    committed = load("static")
    if committed["triton"] != triton.__version__:
        return [
            f"the committed figures are of triton {committed['triton']}, but triton {triton.__version__} is installed: "
            "write them again (python -m bench.gpu.static --out bench/results/offline/DATE/static)"
        ]
    kernels = [record for record in committed["kernels"] if key_of(record)[1:] in chosen]
    return compare(compile_all(chosen), kernels)


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--out", type=Path, metavar="STEM", help="write STEM.md and STEM.json")
    parser.add_argument("--check", action="store_true", help="compare with the committed figures")
    parser.add_argument("--targets", default=",".join(SHARED_LIMITS), metavar="NAME,...")
    args = parser.parse_args()
    import triton

    if triton.knobs.runtime.interpret:
        parser.error("interpreted kernels cannot be compiled: unset TRITON_INTERPRET")
    chosen = combinations(args.targets.split(","))
    if args.check:
        faults = against_committed(chosen)
        print("\n".join(faults) or "no kernel is worse than in the committed figures")
        return 1 if faults else 0
    records = compile_all(chosen)
    if args.out:
        version = str(triton.__version__)
        write_atomically(args.out.with_suffix(".md"), as_markdown(records, version).encode())
        write_json(args.out.with_suffix(".json"), {"triton": version, "kernels": records})
    faults = [f"{', '.join(key_of(record))}: {fault}" for record in records for fault in faults_of(record)]
    print("\n".join(faults) if faults else f"{len(records)} compiled kernels, no fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
