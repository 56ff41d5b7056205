"""How a model is computed, as far as it does not change what is computed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pgat_kernels.dispatch import Kernels

if TYPE_CHECKING:
    from pgat_fast.config.schema import RunConfig


@dataclass(frozen=True)
class Execution:
    """What the fast model asks when it decides how to compute; the reference has no choice.

    Attributes:
        compiled: whether the model will run under `torch.compile`. `compilation.decide_compile` decides it: a setting
            alone does not say it.
        combiner_chunk: timesteps that the combiner computes at a time, and computes again in the backward pass;
            `auto` fits them to the device; None computes all at once and nothing twice.
        exact_dropout: whether attention weights over identical keys are dropped out as the reference does it. Else that
            dropout is left out where a rewrite has removed the weights.
        kernels: which operators are computed by Triton kernels: all that have one with the backend `triton`, those that
            have been measured to be faster with `auto` on a GPU.
    """

    compiled: bool = False
    combiner_chunk: int | Literal["auto"] | None = "auto"
    exact_dropout: bool = False
    kernels: Kernels = Kernels.OFF

    @classmethod
    def of(cls, run: "RunConfig", *, compiled: bool = False, kernels: Kernels = Kernels.OFF) -> Self:
        """What the section `run` of a configuration asks for."""
        chunk = None if run.combiner_chunk == "off" else run.combiner_chunk
        return cls(compiled, chunk, run.exact_dropout, kernels)
