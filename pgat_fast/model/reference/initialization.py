"""Section 13 of docs/model.md: initial values of the parameters."""

import torch
from torch import nn

from pgat_fast.data.bodies import BODIES
from pgat_fast.model.reference.attention import IdenticalKeysAttention, SingleKeyAttention
from pgat_fast.model.reference.body_nodes import BodyNodes
from pgat_fast.model.reference.encoder import SpatioTemporalEncoder

BODY_PATTERNS = {
    "sun": (1.0, 0.8, 0.9, 0.7),
    "moon": (0.3, 0.9, 0.4, 0.8),
    "mercury": (0.9, 0.3, 0.8, 0.4),
    "venus": (0.6, 0.7, 0.8, 0.9),
    "mars": (0.9, 0.2, 0.3, 0.8),
    "jupiter": (0.8, 0.9, 0.7, 0.6),
    "saturn": (0.2, 0.8, 0.9, 0.3),
    "uranus": (0.9, 0.1, 0.2, 0.9),
    "neptune": (0.1, 0.9, 0.8, 0.2),
    "pluto": (0.8, 0.1, 0.9, 0.9),
    "north_node": (0.7, 0.6, 0.8, 0.5),
    "south_node": (0.3, 0.4, 0.2, 0.5),
    "chiron": (0.4, 0.6, 0.5, 0.7),
}
"""Initial embedding of each body: four values, repeated along the width and multiplied by 0.1."""


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """Initialise the parameters of `model` in place with torch's global generator.

    Weights of two or more dimensions are Xavier-uniform (Glorot & Bengio 2010), biases 0. Vectors that are not biases
    (LayerNorm weights, `edges.weights`, `scaler`, `adjacency_scale`) keep the value 1 set by their constructors.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            nn.init.xavier_uniform_(parameter)
        elif "bias" in name.rpartition(".")[2]:
            nn.init.zeros_(parameter)
    for module in model.modules():
        match module:
            case SingleKeyAttention() | IdenticalKeysAttention():
                # The original draws query, key and value weights as one matrix with three times the rows.
                width = module.value.in_features
                bound = (6 / (width + 3 * width)) ** 0.5
                nn.init.uniform_(module.value.weight, -bound, bound)
            case BodyNodes():
                pattern = torch.tensor([BODY_PATTERNS[body] for body in BODIES])
                width = module.embeddings.shape[1]
                module.embeddings.copy_(0.1 * pattern.repeat(1, -(-width // 4))[:, :width])
            case SpatioTemporalEncoder():
                nn.init.normal_(module.spatial_positions)
                nn.init.normal_(module.temporal_positions)
                nn.init.normal_(module.interaction)
            case _:
                pass
