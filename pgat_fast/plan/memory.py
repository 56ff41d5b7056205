"""Memory of a training run, computed from the counts of `trace`.

Tensor bytes are exact: a real step on the CPU, measured in the same way, holds the same bytes. On a GPU they correspond
to `torch.cuda.max_memory_allocated` and are limited by `run.device_memory_limit_gb`. Additional memory reserved by
torch or used by the driver is not predicted. The figures for a GPU have not been compared with one.

A process on the CPU needs more. Its parts, each measured on Linux (torch 2.13, glibc 2.36, 2 threads):

    RUNTIME                   the interpreter, torch and the other libraries, loaded: 0.40 GiB
    DATA x file               the data file, read and scaled: 3 bytes a byte of it
    parameters and Adam       12 bytes a parameter
    RECURRENCE x 13 S         autograd's own objects for the recurrences: 14.4 KiB a step for any batch size
    large tensors             of 32 MiB and more: the C library maps each one separately, and returns it when freed
    HEAP x small tensors      the others are on the heap, which never shrinks and becomes fragmented
    COMPILER                  memory that `torch.compile` takes and does not return, for a compiled backend: 0.20 GiB

Comparison with measured peaks above the imports, which took 0.23 GiB (GiB; batches 1 and 4 of the first and the second
are in `bench/results`):

    production_batched, batch 1, 2, 4       2.12  3.70  7.35   predicted 2.17  3.91  7.38   (+2, +6, +0 %)
    production (hierarchical), batch 1      5.12               predicted 5.39               (+5 %)
    the same with seq_len 60, batch 2       2.95               predicted 3.29               (+12 %, after 3 steps)
    quickstart, batch 8, 64                 0.60  2.09         predicted 0.56  2.29         (-5, +9 %)
    production_batched, batch 1, bf16       1.82               predicted 1.62               (-11 %)

A whole run, `pgat-fast train` with quickstart's batch of 8, evaluation included: 0.88, predicted 0.86 (-3 %).

The backend `torch`, compiled, in float32 (`bench/results/*/*/step_*.json`; a test compares them):

    production_batched, batch 1, 4          0.90  1.34         predicted 0.90  1.22         (0, -9 %)
    production (hierarchical), batch 1      1.13               predicted 1.17               (+4 %)

Most predictions are slightly high; 10 % of the memory should stay free. HEAP is the uncertain part: the heap took 1.4
to 2.2 times the small tensors in float32, more with the smaller tensors of bf16, and it grows over the first steps. All
values were measured on one AMD processor.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pgat_fast.plan.trace import Memory
from pgat_fast.utils.system import GIB

RUNTIME = int(0.40 * GIB)
DATA = 3
RECURRENCE = 14_768
HEAP = 2.0
COMPILER = int(0.20 * GIB)
ADAM_TENSORS = 2
"""Tensors of Adam a parameter: the means of the gradients and of their squares."""


def tensor_bytes(memory: Memory, parameter_bytes: int) -> int:
    """Return the peak bytes of all tensors in a training step, including parameters and Adam."""
    return (1 + ADAM_TENSORS) * parameter_bytes + memory.peak


def process_bytes(
    memory: Memory, parameter_bytes: int, recurrence_steps: int, data_file_bytes: int = 0, *, compiled: bool = False
) -> int:
    """Return the peak bytes of a process that trains on the CPU; see the module docstring.

    Args:
        memory: count for one micro-batch.
        parameter_bytes: bytes of all parameters, float32.
        recurrence_steps: steps of all recurrences together, 13 S with the celestial graph of the reference.
        data_file_bytes: size of the data file.
        compiled: whether the model may be compiled with `torch.compile`.
    """
    fixed = RUNTIME + DATA * data_file_bytes + RECURRENCE * recurrence_steps + compiled * COMPILER
    state = (1 + ADAM_TENSORS) * parameter_bytes
    return fixed + state + memory.peak_large + int(HEAP * memory.peak_small)


def line_through(first: Memory, second: Memory) -> Callable[[int], Memory]:
    """Return a function batch -> memory, linear through two counts and never below that of the smaller batch."""
    smaller, larger = sorted((first, second), key=lambda memory: memory.batch)

    def at(batch: int) -> Memory:
        def field(name: str) -> int:
            start: int = getattr(smaller, name)
            end: int = getattr(larger, name)
            return start + round(max(0, end - start) * max(0, batch - smaller.batch) / (larger.batch - smaller.batch))

        return Memory(batch, field("kept"), field("peak"), field("peak_small"), field("peak_large"))

    return at


@dataclass(frozen=True)
class Fit:
    """The largest batch size that fits into memory."""

    batch: int
    """0 if not even one window fits."""
    needed: int
    """Bytes needed by this batch, or by one window if none fits."""
    capped: bool
    """Whether the number of windows, not the memory, is the limit."""


def largest_batch(need: Callable[[int], int], room: int, start: int, most: int) -> Fit:
    """Return the largest batch from 1 to `most` whose `need(batch)`, in bytes, is at most `room`.

    `need` is slow, increasing and nearly linear. It is evaluated at 1, at `start`, and then where the line through two
    known points reaches `room`.
    """
    evaluated: dict[int, int] = {}

    def fits(batch: int) -> bool:
        if batch not in evaluated:
            evaluated[batch] = need(batch)
        return evaluated[batch] <= room

    if not fits(1):
        return Fit(0, evaluated[1], capped=False)
    fitting, excessive = 1, most + 1
    guess = start
    while excessive - fitting > 1:
        guess = min(max(guess, fitting + 1), excessive - 1)
        if fits(guess):
            fitting = guess
        else:
            excessive = guess
        near, far = sorted(evaluated, key=lambda batch: abs(batch - guess))[:2]
        slope = (evaluated[far] - evaluated[near]) / (far - near)
        guess = most if slope <= 0 else int(near + (room - evaluated[near]) / slope)
    return Fit(fitting, evaluated[fitting], capped=fitting == most)
