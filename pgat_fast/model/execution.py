"""How a model is computed, as far as it does not change what is computed."""

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
    """What the fast model asks when it decides how to compute; the reference has no choice.

    Attributes:
        compiled: whether the model will run under `torch.compile`. `compilation.decide_compile` decides it: a setting
            alone does not say it.
        combiner_chunk: timesteps that the combiner computes at a time; `auto` fits them to the device; None hands all
            of them to torch's autograd at once, which keeps everything and is slow.
        keep: bytes that combiner and graph attention, each, keep at most for the backward pass. Chunks that do not fit
            are computed again there: the same results to the bit.
        exact_dropout: whether attention weights over identical keys are dropped out as the reference does it. Else that
            dropout is left out where a rewrite has removed the weights.
        kernels: which operators are computed by Triton kernels: all that have one with the backend `triton`, those that
            have been measured to be faster with `auto` on a GPU.
    """

    compiled: bool = False
    combiner_chunk: int | Literal["auto"] | None = "auto"
    keep: int = 0
    exact_dropout: bool = False
    kernels: Kernels = Kernels.OFF

    @classmethod
    def of(cls, run: "RunConfig", *, compiled: bool = False, kernels: Kernels = Kernels.OFF) -> Self:
        """What the section `run` of a configuration asks for; of the memory that is free now with `recompute: auto`."""
        chunk = None if run.combiner_chunk == "off" else run.combiner_chunk
        return cls(compiled, chunk, bytes_to_keep(run), run.exact_dropout, kernels)


KEEPING_OPERATORS: Final = 2
"""How many of a model's operators keep anything: the combiner and the graph attention."""


def bytes_to_keep(run: "RunConfig") -> int:
    """Return `Execution.keep` as `run.recompute` asks for it.

    With `auto` on a CPU all operators together keep at most a quarter of the memory that is free now. Processes beside
    each other share that: ranks, and jobs that have some of the cores each. On a GPU 0.
    """
    if run.recompute != "auto":
        return {"on": 0, "off": sys.maxsize}[run.recompute]
    if run.device.startswith("cuda") or resolve_device(run.device).type == "cuda":  # the first may not be here: `plan`
        return 0
    share = min(1 / local_world_size(), torch.get_num_threads() / usable_cores())
    return int(free_memory(run.memory_limit_gb) * share / 4 / KEEPING_OPERATORS)
