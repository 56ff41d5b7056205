"""Parts of the fast model with their counterparts of the reference, and inputs for them."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from pgat_fast.data.columns import COLUMNS
from pgat_fast.model.optimized.body_nodes import FastBodyFusion, FastBodyNodes
from pgat_fast.model.optimized.phase import FastPhaseAwareProcessor
from pgat_fast.model.reference.body_nodes import BodyFusion, BodyNodes
from pgat_fast.model.reference.phase import PhaseAwareProcessor
from tests.pgat_fast.model.by_hand import normal, randomize


class Case(NamedTuple):
    reference: type[nn.Module]
    fast: type[nn.Module]
    arguments: tuple[Any, ...]
    inputs: tuple[tuple[int, ...], ...]
    """Shape of each input, without [B, S]."""

    def models(self) -> tuple[nn.Module, nn.Module]:
        """Return reference and fast module with the same random parameters, float64, in evaluation mode."""
        reference, fast = randomize(self.reference(*self.arguments)), self.fast(*self.arguments).double().eval()
        fast.load_state_dict(reference.state_dict())
        return reference, fast

    def values(self, batch: int = 2, steps: int = 4) -> list[Tensor]:
        return [inputs_of(batch, steps, *shape, seed=seed) for seed, shape in enumerate(self.inputs, 1)]


DISTANCES = [k for k, name in enumerate(COLUMNS) if name.endswith("distance")]


def inputs_of(*shape: int, seed: int = 1) -> Tensor:
    """Return inputs; distances are not near 0, since errors of their ratios would hide all other errors."""
    x = normal(*shape, seed=seed)
    if shape[-1] == len(COLUMNS):
        x[..., DISTANCES] = x[..., DISTANCES].abs() + 0.5
    return x


def nodes(width: int) -> Case:
    return Case(BodyNodes, FastBodyNodes, (width,), ((width,),))


def fusion(width: int, n_heads: int, dropout: float = 0.0) -> Case:
    return Case(BodyFusion, FastBodyFusion, (width, n_heads, dropout), ((width,), (13, width)))


def phase(n_heads: int, feature_map: str, phase_edges: str) -> Case:
    settings = (n_heads, feature_map, phase_edges)
    return Case(PhaseAwareProcessor, FastPhaseAwareProcessor, settings, ((len(COLUMNS),),))
