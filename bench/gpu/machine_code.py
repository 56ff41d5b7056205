"""Machine code of a kernel launch, from triton's offline compiler: how many instructions its warps issue. Needs no GPU.

A scheduler of an NVIDIA GPU issues at most one instruction of a warp in a clock cycle. So a launch takes at least

    instructions of a warp * warps * programs / (multiprocessors * 4 schedulers * clock)

however little it computes and moves. The instructions of a warp are those of the disassembled kernel, each body of a
loop as often as the loop runs. A kernel of triton has no other branches within a program. The loops of the machine code
are those of triton's IR, in the same order, whose bounds are constants or arguments (`trip_counts`), without the
shortest ones where a compiler has unrolled them. Where the two do not match, `MismatchError` is raised, never guessed.

Products on tensor cores are counted as executed: a warp-group instruction of 64 rows takes four warps, and eight warps
on a tile of 64 rows compute everything twice.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

_TRITON_NAMES: Final = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
}


class MismatchError(Exception):
    """Loops of the machine code that cannot be matched with those of triton's IR, or whose bounds are unknown."""


class Issued(NamedTuple):
    """What one program of a kernel executes."""

    instructions: int
    """Instructions of all its warps."""
    product_flops: int
    """FLOPs of its instructions for tensor cores, padding and duplicates included; 0 if they do not show their size."""
    spills: int
    """Instructions of all its warps that move registers to memory and back."""


# --- compiling --------------------------------------------------------------------------------------------------------


def compile_launch(launch: Any, target: str) -> Any:
    """Compile the kernel of a launch for `target`, such as `sm_90` or `gfx942`, as triton would; return its result.

    Must not be called in a process where triton interprets kernels.
    """
    import triton

    source, _ = source_of(launch)
    return triton.compile(source, target=target_of(target), options=options_of(launch))


def target_of(name: str) -> Any:
    """Return triton's target for a name such as `sm_90` or `gfx942`."""
    from triton.backends.compiler import GPUTarget

    return GPUTarget("hip", name, 64) if name.startswith("gfx") else GPUTarget("cuda", int(name[3:]), 32)


def options_of(launch: Any) -> dict[str, int]:
    """Return triton's compile options for a launch."""
    return {"num_warps": launch.configuration.warps, "num_stages": launch.configuration.stages}


def source_of(launch: Any) -> tuple[Any, dict[str, Any]]:
    """Return the source that triton would compile at a launch, and the arguments to call it with, by name."""
    from triton.compiler import ASTSource

    kernel = launch.kernel
    names = kernel.arg_names
    values = dict(zip(names, launch.tensors, strict=False)) | launch.named | {"BLOCK": launch.configuration.block}
    constants = {name for name, parameter in zip(names, kernel.params, strict=True) if parameter.is_constexpr}
    # Triton turns ones into constants and marks multiples of 16 as divisible, such as addresses of new tensors.
    constants |= {name for name, value in values.items() if type(value) is int and value == 1}
    arguments = {name: values[name] for name in names if name not in constants}
    aligned = [
        name
        for name, value in arguments.items()
        if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0)
    ]
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else _type_of(values[name]) for name in names},
        constexprs={(names.index(name),): values[name] for name in constants},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return source, arguments


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{_TRITON_NAMES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def run_tool(tool: str, option: str, cubin: bytes) -> str:
    """Return the output of `cuobjdump` or `nvdisasm`, which are part of triton, for a kernel."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([path, option, file.name], capture_output=True, text=True, check=True).stdout


# --- counting ---------------------------------------------------------------------------------------------------------

_INSTRUCTION: Final = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[T\d]\d*\s+)?([A-Z][\w.]*)(.*)")
_LABEL: Final = re.compile(r"(\.L_\w+):")
_FOR: Final = re.compile(r"scf\.for %\w+ = (%\w+) to (%\w+) step (%\w+)")
_DEFINITION: Final = re.compile(r"\s*(%\w+) = arith\.(addi|minsi) (%\w+), (%\w+)")
_CONSTANT: Final = re.compile(r"%c(-?\d+)_i\d+(?:_\d+)?")
_FEWEST: Final = 4
"""Instructions of the shortest loop: the last instruction of a kernel is a branch to itself."""
UNROLLED: Final = 8
"""Most iterations of a loop that a compiler may unroll as a whole."""
_PADDING: Final = "NOP"
SPILLS: Final = ("STL", "LDL")
"""Beginnings of the names of instructions that move registers to memory and back."""


def instructions_of(code: str) -> list[str]:
    """Return the names of the instructions in the output of `nvdisasm -c`, such as `LDG.E.128.CONSTANT`."""
    return [match[1] for line in code.splitlines() if (match := _INSTRUCTION.match(line))]


def loops_of(code: str) -> list[tuple[int, int]]:
    """Return the index of the first and of the last instruction of every loop, outer loops before inner ones."""
    labels: dict[str, int] = {}
    loops = []
    count = 0
    for line in code.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = count
        elif instruction := _INSTRUCTION.match(line):
            target = re.search(r"\.L_\w+", instruction[2]) if instruction[1].startswith("BRA") else None
            start = labels.get(target[0], count) if target else count
            if count - start >= _FEWEST:
                loops.append((start, count))
            count += 1
    return sorted(loops, key=lambda loop: (loop[0], -loop[1]))


def trip_counts(ir: str, arguments: dict[str, Any]) -> list[int]:
    """Return how often each loop of a kernel runs, in the order of triton's IR for GPUs.

    Args:
        ir: the text of `compiled.asm["ttgir"]`.
        arguments: of the launch, by name.

    Raises MismatchError for a bound that is neither a constant nor an argument.
    """
    definitions = {match[1]: match.groups()[1:] for line in ir.splitlines() if (match := _DEFINITION.match(line))}

    def value(name: str) -> int:
        constant = _CONSTANT.fullmatch(name)
        if constant:
            return int(constant[1])
        if isinstance(arguments.get(name[1:]), int):
            return int(arguments[name[1:]])
        raise MismatchError(f"the bound {name} of a loop is neither a constant nor an argument")

    def distance(start: str, stop: str) -> int:
        """Return the difference of two bounds: the largest one, if `stop` is the smaller of two values."""
        operation, *operands = definitions.get(stop, ("", "", ""))
        if operation == "minsi":
            distances = []
            for operand in operands:
                try:
                    distances.append(distance(start, operand))
                except MismatchError:
                    continue
            if distances:
                return min(distances)
        if operation == "addi" and start in operands:
            return value(operands[1 - operands.index(start)])
        return value(stop) - value(start)

    trips = []
    for line in ir.splitlines():
        if match := _FOR.search(line):
            start, stop, step = match.groups()
            trips.append(max(0, -(-distance(start, stop) // value(step))))
    return trips


def count(code: str, trips: list[int], warps: int) -> Issued:
    """Count what a program of `warps` warps executes.

    Args:
        code: the output of `nvdisasm -c`.
        trips: how often each loop runs, see `trip_counts`.

    Raises MismatchError if the code has another number of loops, but for unrolled ones.
    """
    loops, names = loops_of(code), instructions_of(code)
    trips = _without_unrolled(trips, len(loops))
    if len(loops) != len(trips):
        raise MismatchError(f"{len(loops)} loops in the machine code, {len(trips)} in triton's IR")
    times = [1] * len(names)
    for (first, last), trip in zip(loops, trips, strict=True):
        times[first : last + 1] = [trip * n for n in times[first : last + 1]]
    executed = [(name, n) for name, n in zip(names, times, strict=True) if name != _PADDING]
    return Issued(
        warps * sum(n for _, n in executed),
        sum(n * product_flops(name, warps) for name, n in executed),
        warps * sum(n for name, n in executed if name.startswith(SPILLS)),
    )


def _without_unrolled(trips: list[int], count: int) -> list[int]:
    """Return `trips` without the loops that run least, if only `count` loops are left and these run more often."""
    unrolled = sorted(trips)[: max(0, len(trips) - count)]
    left = [trip for trip in trips if trip > max(unrolled, default=0)]
    return left if len(left) == count and max(unrolled, default=0) <= UNROLLED else trips


def product_flops(name: str, warps: int) -> int:
    """Return the FLOPs of an instruction for tensor cores, executed by each of `warps` warps; 0 for other ones."""
    if group := re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", name):  # M x N x K, by four warps together
        m, n, k = map(int, group.groups())
        return 2 * m * n * k * warps // 4
    if name.startswith("HMMA.16816"):
        return 2 * 16 * 8 * 16 * warps
    return 0


def issued(launch: Any, target: str) -> Issued:
    """Compile the kernel of a launch for an NVIDIA `target` and count what one of its programs executes.

    Raises MismatchError, which names the kernel.
    """
    compiled = compile_launch(launch, target)
    names = launch.kernel.arg_names
    arguments = dict(zip(names, launch.tensors, strict=False)) | launch.named | {"BLOCK": launch.configuration.block}
    try:
        trips = trip_counts(compiled.asm["ttgir"], arguments)
        return count(run_tool("nvdisasm", "-c", compiled.asm["cubin"]), trips, launch.configuration.warps)
    except MismatchError as error:
        raise MismatchError(f"{launch.kernel.__name__} for {target}: {error}") from error
