"""Sections 3 and 4 of docs/model.md: body nodes with their aspects, and fusion of the bodies into the market state."""

import torch
from torch import Tensor, nn

from pgat_fast.data.bodies import BODIES
from pgat_fast.model.numerics import gate
from pgat_fast.model.reference.phase import body_pairs

ASTROLOGICAL_STRENGTHS = {
    ("sun", "jupiter"): 0.9,
    ("moon", "venus"): 0.8,
    ("mercury", "uranus"): 0.7,
    ("mars", "saturn"): -0.6,
    ("sun", "pluto"): -0.5,
    ("jupiter", "neptune"): -0.4,
    ("north_node", "south_node"): -0.8,
    ("sun", "saturn"): -0.7,
    ("venus", "jupiter"): 0.9,
    ("mercury", "mars"): 0.6,
    ("moon", "mercury"): 0.5,
    ("venus", "mars"): 0.4,
}
"""Static signed adjacency between different bodies; other pairs have 0."""


def astrological_adjacency() -> Tensor:
    """Return the static adjacency [N, N], symmetric with diagonal 1."""
    adjacency = torch.eye(len(BODIES))
    for (a, b), strength in ASTROLOGICAL_STRENGTHS.items():
        i, j = BODIES.index(a), BODIES.index(b)
        adjacency[i, j] = adjacency[j, i] = strength
    return adjacency


class BodyNodes(nn.Module):
    """Aspects between bodies and features of each body, computed from the market state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.empty(len(BODIES), width))
        self.market = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.aspects = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))
        self.transforms = nn.ModuleDict(
            {
                body: nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))
                for body in BODIES
            }
        )

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return dynamic adjacency [B, S, N, N] with diagonal 1 and body features [B, S, N, D] for e [B, S, D]."""
        u = self.embeddings + self.market(e)[:, :, None]  # [B, S, N, D]
        i, j = body_pairs(e.device)
        strength = gate(self.aspects(torch.cat((u[:, :, i], u[:, :, j]), dim=-1))).squeeze(-1).to(e.dtype)
        upper = strength.new_zeros(*e.shape[:2], len(BODIES), len(BODIES))
        upper[:, :, i, j] = strength
        adjacency = upper + upper.transpose(2, 3) + torch.eye(len(BODIES), dtype=upper.dtype, device=e.device)
        features = [
            transform(self.embeddings[b] + e) for b, transform in enumerate(self.transforms[body] for body in BODIES)
        ]
        return adjacency, torch.stack(features, dim=2)


def fusion_width(width: int, n_heads: int) -> int:
    """Return Df = max(H, min(D, 64)), rounded up to a multiple of H."""
    return -(-max(n_heads, min(width, 64)) // n_heads) * n_heads


class BodyFusion(nn.Module):
    """Gated attention of the market state to the bodies, with one query and N keys a timestep."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        inner = fusion_width(width, n_heads)
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.attention = nn.MultiheadAttention(inner, n_heads, dropout=dropout, batch_first=True)
        self.output = nn.Linear(inner, width)
        self.gate = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, e: Tensor, bodies: Tensor) -> Tensor:
        """Return the market state [B, S, D] for market state e [B, S, D] and body features [B, S, N, D]."""
        query = self.query(e).flatten(0, 1)[:, None]  # [B * S, 1, Df]
        key, value = self.key(bodies).flatten(0, 1), self.value(bodies).flatten(0, 1)  # [B * S, N, Df]
        attended = self.attention(query, key, value)[0].view(*e.shape[:2], -1)
        f = self.output(attended)
        g = gate(self.gate(torch.cat((e, f), dim=-1)))
        return e + (g * f).to(e.dtype)
