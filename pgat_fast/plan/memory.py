"""How much memory a run needs while it trains, from what `trace` counts.

Tensors are exact: a real step on the CPU, followed by the same means, holds the same bytes. On a GPU they are what
`torch.cuda.max_memory_allocated` tells and `run.device_memory_limit_gb` limits. What torch reserves beyond them, and
the driver takes, is not predicted. The figures for a GPU have not been compared with one.

A process on the CPU needs more. Its parts, each measured on Linux (torch 2.13, glibc 2.36, 2 threads):

    RUNTIME                   the interpreter, torch and the other libraries, loaded: 0.40 GiB
    DATA x file               the data file, read and scaled: 3 bytes a byte of it
    parameters and Adam       12 bytes a parameter
    RECURRENCE x 13 S         autograd's own objects for the recurrences: 14.4 KiB a step, whatever the batch
    large tensors             of 32 MiB and more: the C library maps each on its own, and gives it back
    HEAP x small tensors      the others lie on the heap, which keeps its largest size and grows holes
    COMPILER                  what `torch.compile` loads and leaves behind, of a backend that is compiled: 0.20 GiB

Against measured peaks above the imports, which took 0.23 GiB (GiB; batches 1 and 4 of the first and the second
are in `bench/results`):

    production_batched, batch 1, 2, 4       2.12  3.70  7.35   predicted 2.17  3.91  7.38   (+2, +6, +0 %)
    production (hierarchical), batch 1      5.12               predicted 5.39               (+5 %)
    the same with seq_len 60, batch 2       2.95               predicted 3.29               (+12 %, after 3 steps)
    quickstart, batch 8, 64                 0.60  2.09         predicted 0.56  2.29         (-5, +9 %)
    production_batched, batch 1, bf16       1.82               predicted 1.62               (-11 %)

A whole run, `pgat-fast train` with quickstart's batch of 8, evaluation included: 0.88, predicted 0.86 (-3 %).

The backend `torch`, compiled, in float32 (`fast_step_*.json` there; a test compares them):

    production_batched, batch 1, 4          0.90  1.34         predicted 0.90  1.22         (0, -9 %)
    production (hierarchical), batch 1      1.13               predicted 1.17               (+4 %)

So a prediction is mostly somewhat high, and 10 % of the memory should stay free. HEAP is the uncertain part: the heap
took 1.4 to 2.2 times the small tensors in float32, more with the smaller tensors of bf16, and grows over the first
steps. All was measured on one processor by AMD.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pgat_fast.plan.trace import Memory

GIB = 2**30
RUNTIME = int(0.40 * GIB)
DATA = 3
RECURRENCE = 14_768
HEAP = 2.0
COMPILER = int(0.20 * GIB)
ADAM_TENSORS = 2
"""Adam keeps the means of the gradients and of their squares."""


def tensor_bytes(memory: Memory, parameter_bytes: int) -> int:
    """The most that tensors hold in a training step, parameters and Adam included."""
    return (1 + ADAM_TENSORS) * parameter_bytes + memory.peak


def process_bytes(
    memory: Memory, parameter_bytes: int, recurrence_steps: int, data_file_bytes: int = 0, *, compiled: bool = False
) -> int:
    """The most that a process holds that trains on the CPU; see above.

    Args:
        memory: of one micro-batch.
        parameter_bytes: of all parameters, float32.
        recurrence_steps: steps of all recurrences together, 13 S with the celestial graph of the reference.
        data_file_bytes: size of the data file.
        compiled: whether the model may be given to `torch.compile`.
    """
    fixed = RUNTIME + DATA * data_file_bytes + RECURRENCE * recurrence_steps + compiled * COMPILER
    state = (1 + ADAM_TENSORS) * parameter_bytes
    return fixed + state + memory.peak_large + int(HEAP * memory.peak_small)


def line_through(first: Memory, second: Memory) -> Callable[[int], Memory]:
    """Batch -> memory, on the straight line through that of two batches, but never below that of the smaller one."""
    low, high = sorted((first, second), key=lambda memory: memory.batch)

    def at(batch: int) -> Memory:
        def field(name: str) -> int:
            start: int = getattr(low, name)
            end: int = getattr(high, name)
            return start + round(max(0, end - start) * max(0, batch - low.batch) / (high.batch - low.batch))

        return Memory(batch, field("kept"), field("peak"), field("peak_small"), field("peak_large"))

    return at


@dataclass(frozen=True)
class Fit:
    """The largest batch that fits."""

    batch: int
    """0: not even one window fits."""
    needed: int
    """Bytes that it needs (of one window, where none fits)."""
    capped: bool
    """Whether more would fit, but there are no more windows."""


def largest_batch(need: Callable[[int], int], room: int, start: int, most: int) -> Fit:
    """The largest batch from 1 to `most` whose `need(batch)`, in bytes, is at most `room`.

    `need` grows with the batch, nearly in a straight line, and takes time: it is asked for `start`, then where the line
    through two known points reaches `room`.
    """
    known: dict[int, int] = {}

    def fits(batch: int) -> bool:
        if batch not in known:
            known[batch] = need(batch)
        return known[batch] <= room

    if not fits(1):
        return Fit(0, known[1], capped=False)
    low, high = 1, most + 1  # low fits, high does not, or is too many
    guess = start
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        if fits(guess):
            low = guess
        else:
            high = guess
        near, far = sorted(known, key=lambda batch: abs(batch - guess))[:2]
        slope = (known[far] - known[near]) / (far - near)
        guess = most if slope <= 0 else int(near + (room - known[near]) / slope)
    return Fit(low, known[low], capped=low == most)
