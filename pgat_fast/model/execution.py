"""Execution options of a model; they do not change the function that it computes."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

import torch

from pgat_fast.distributed.environment import local_world_size
from pgat_fast.monitoring.memory import free_memory
from pgat_fast.utils.cores import usable_cores
from pgat_fast.utils.device import resolve_device
from pgat_kernels.dispatch import Kernels

if TYPE_CHECKING:
    from pgat_fast.config.schema import RunConfig


@dataclass(frozen=True)
class Execution:
    """Execution options of the fast model; the reference has none.

    Attributes:
        compiled: whether the model will run under `torch.compile`; the result of `compilation.decide_compile`, not of
            a setting alone.
        combiner_chunk: timesteps that the combiner computes at a time; `auto` chooses them for the device; None passes
            all of them to torch's autograd at once, which keeps all intermediate results and is slow.
        keep: bytes that the combiner and the graph attention each keep at most for the backward pass. Chunks that do
            not fit are recomputed there, with bitwise equal results.
        exact_dropout: whether attention weights over identical keys are dropped as in the reference. Otherwise that
            dropout is omitted where a rewrite has removed the weights.
        kernels: which operators use Triton kernels: all that have one with the backend `triton`; with `auto` on a GPU
            those listed as faster.
        deterministic: whether a GPU must compute the same bits again. The backward pass of torch's fused attention does
            not, so in training attention over tokens is then computed in blocks, which takes longer.
    """

    compiled: bool = False
    combiner_chunk: int | Literal["auto"] | None = "auto"
    keep: int = 0
    exact_dropout: bool = False
    kernels: Kernels = Kernels.OFF
    deterministic: bool = True

    @classmethod
    def of(cls, run: "RunConfig", *, compiled: bool = False, kernels: Kernels = Kernels.OFF) -> Self:
        """Return the options for the section `run` of a configuration; `recompute: auto` uses the free memory."""
        chunk = None if run.combiner_chunk == "off" else run.combiner_chunk
        return cls(compiled, chunk, bytes_to_keep(run), run.exact_dropout, kernels, run.deterministic)


KEEPING_OPERATORS: Final = 2
"""Number of operators of a model that keep intermediate results: the combiner and the graph attention."""


def bytes_to_keep(run: "RunConfig") -> int:
    """Return `Execution.keep` for `run.recompute`.

    With `auto` on a CPU all operators together keep at most a quarter of the memory that is free now, divided among the
    processes of the machine: ranks, and jobs that use some of the cores each. On a GPU the result is 0.
    """
    if run.recompute != "auto":
        return {"on": 0, "off": sys.maxsize}[run.recompute]
    if run.device.startswith("cuda") or resolve_device(run.device).type == "cuda":  # `plan` may name an absent GPU
        return 0
    share = min(1 / local_world_size(), torch.get_num_threads() / usable_cores())
    return int(free_memory(run.memory_limit_gb) * share / 4 / KEEPING_OPERATORS)
