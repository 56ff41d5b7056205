"""Independent check of the kernels: their IR executed on a CPU by `ttsem`, which detects bounds errors and races.

    pip install ttsem                      # needs Python 3.12
    python -m bench.studies.ir_sanitizer --json bench/results/offline/DATE/ir_sanitizer.json

Every case of `bench.gpu.kernel_cases` is computed for one timestep, forward and backward; each launch executes the IR
that triton's frontend generates for the kernel. triton's interpreter runs Python, one program after the other, and
detects neither accesses next to a tensor nor programs that access the same number; `ttsem` stops at the first, and
finds the second in the log of all accesses. Results are compared with plain torch as in `bench.gpu.measure`. Two
kernels with a planted fault, a write past the end and two programs that write the same number, show that such faults
are detected.

Exit status 1: a fault was found, or a planted one was not.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.gpu.kernel_cases import CASES, DTYPES
from bench.gpu.machine_code import options_of, source_of, target_of
from bench.gpu.measure import parity
from bench.processes import make_parser, write
from bench.result_files import Record
from pgat_kernels.instrumentation import Launch, intercept_launches
from pgat_kernels.tuning_table import Configuration

DISTANCE = 2**24
"""Bytes between two tensors, so that an access next to one reaches no other."""


@triton.jit
def _writes_behind_the_end(x_ptr, count, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), 1.0)


@triton.jit
def _writes_where_others_write(x_ptr, count, BLOCK: tl.constexpr):
    tl.store(x_ptr + tl.arange(0, BLOCK), tl.program_id(0) * 1.0)


def text_of(launch: Launch) -> tuple[str, dict[str, Any]]:
    """Return the IR that triton's frontend generates at a launch, and the kernel's arguments."""
    from triton._C.libtriton import ir
    from triton.compiler.compiler import make_backend

    source, arguments = source_of(launch)
    target = target_of("sm_90")
    backend = make_backend(target)
    options = backend.parse_options(options_of(launch))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = backend.get_codegen_implementation(options)
    module = source.make_ir(target, options, functions, backend.get_module_map(), context)
    # The parser does not accept decimal points in the names of functions.
    return re.sub(r"_c(\d+)\.(\d+)_", r"_c\1p\2_", str(module)), arguments


def execute(launch: Launch) -> str | None:
    """Compute the results of a launch, in its tensors. Returns a description of the fault found, or None."""
    from ttsem import mlir
    from ttsem.harness import _entry_candidates, _scalar_value
    from ttsem.interp import Interp
    from ttsem.memory import Memory, MemoryFault
    from ttsem.pidraces import find_race

    mlir.enable_generic_printing()
    text, arguments = text_of(launch)
    module = mlir.parse(text)
    name = launch.kernel.__name__
    entry = name if name in module.funcs else _entry_candidates(module, name)[0]
    types = [kind for _, kind in module.funcs[entry].regions[0].blocks[0].args]
    memory = Memory()
    memory.trace()
    bases: dict[int, int] = {}
    buffers: list[tuple[Tensor, np.ndarray]] = []
    values = []
    for value, kind in zip(arguments.values(), types, strict=True):
        if not isinstance(value, Tensor):
            values.append(_scalar_value(value, kind))
            continue
        storage = value.untyped_storage()
        if storage.data_ptr() not in bases:
            storage_bytes = torch.empty(0, dtype=torch.uint8).set_(storage)
            copy = storage_bytes.numpy().copy() if len(storage_bytes) else np.zeros(1, np.uint8)
            base = 2**32 + sum(array.nbytes + DISTANCE for _, array in buffers) // 256 * 256
            memory.register(base, copy)
            bases[storage.data_ptr()] = base
            buffers.append((storage_bytes, copy))
        address = bases[storage.data_ptr()] + value.storage_offset() * value.element_size()
        values.append(np.array(address, dtype=np.int64))
    interpreter = Interp(module, memory, (launch.programs, 1, 1))
    try:
        interpreter.run_grid(entry, values)
    except MemoryFault as error:
        return f"outside of every tensor: {error}"
    for storage_bytes, copy in buffers:
        if len(storage_bytes):
            storage_bytes.copy_(torch.from_numpy(copy))
    race = find_race(memory.access_log)
    if race is not None:
        return re.sub(r'loc\("[^"]*/', 'loc("', f"{race.kind} race: {race.first} and {race.second}")
    unknown = sorted(getattr(interpreter, "unsupported", None) or [])
    return f"not executed: {', '.join(unknown)}" if unknown else None


def planted() -> list[Record]:
    """Return what is found in the kernels with planted faults."""
    records = []
    for kernel in (_writes_behind_the_end, _writes_where_others_write):
        launch = Launch(kernel, 3, (torch.zeros(40),), {"count": 40}, Configuration(16, 4, 1), 0)
        records.append({"kernel": kernel.__name__, "found": execute(launch)})
    return records


def main() -> int:
    """Execute every case. Returns 1 if a fault was found, or a planted one was not."""
    parser = make_parser(__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    args = parser.parse_args()
    launches: list[Record] = []

    def run(launch: Launch) -> None:
        launches.append({"kernel": launch.kernel.__name__, "programs": launch.programs, "found": execute(launch)})

    planted_faults, cases = planted(), []
    with intercept_launches(run):
        for case in CASES:
            for dtype in case.dtypes:
                if dtype == "fp16":
                    continue  # the same kernels as for bf16
                launches.clear()
                outcome = parity(case, DTYPES[dtype], torch.device("cpu"), 1)
                labels = {"operator": case.operator, "shape": case.shape, "dtype": dtype}
                cases.append({**labels, **outcome, "launches": list(launches)})
                print(json.dumps(cases[-1]), flush=True)
    write(args.json, "bench.studies.ir_sanitizer", {"planted": planted_faults, "cases": cases})
    is_faulty = any(not case["ok"] or any(launch["found"] for launch in case["launches"]) for case in cases)
    return int(is_faulty or any(fault["found"] is None for fault in planted_faults))


if __name__ == "__main__":
    sys.exit(main())
