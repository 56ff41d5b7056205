"""Sizes that follow from the settings of a model."""

import math
from typing import Any

from pgat_fast.data.bodies import BODIES


class Sizes:
    """Properties of an object with the settings of a model as attributes."""

    @property
    def nodes(self: Any) -> int:
        """N: the bodies, or the inputs where there is no celestial graph."""
        return len(BODIES) if self.use_celestial_graph else int(self.enc_in)

    @property
    def embed_dim(self: Any) -> int:
        """D: `d_model` raised to the next multiple of lcm(nodes, n_heads)."""
        step = math.lcm(self.nodes, self.n_heads)
        return -(-int(self.d_model) // step) * step
