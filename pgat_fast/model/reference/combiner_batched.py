"""Section 6a of docs/model.md: batched combiner, self-attention over the edges of a timestep with one token an edge."""

import torch
from torch import Tensor, nn

from pgat_fast.model.reference.attention import feed_forward
from pgat_fast.model.reference.recompute import recompute_in_backward


class BatchedFusionBlock(nn.Module):
    """Post-norm transformer block over the edges of a timestep: [B * S, N * N, D] -> [B * S, N * N, D]."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, 2 * width, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, t: Tensor) -> Tensor:
        t = self.norm1(t + self.dropout(self.attention(t, t, t)[0]))
        return self.norm2(t + self.dropout(self.feed_forward(t)))


class BatchedCombiner(nn.Module):
    """Combination of three adjacencies of every timestep to one."""

    recompute = True
    """Whether the backward pass recomputes the layers instead of keeping their activations."""

    def __init__(self, width: int, n_heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.edge_projection = nn.Linear(3, width)
        self.layers = nn.ModuleList(BatchedFusionBlock(width, n_heads, dropout) for _ in range(layers))
        self.output = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Dropout(dropout), nn.Linear(width // 2, 1)
        )

    def forward(self, adjacencies: tuple[Tensor, Tensor, Tensor], context: Tensor) -> Tensor:
        """Combine adjacencies [B, S, N, N] to [B, S, N, N] in (-1, 1); the context [B, S, D] is not used."""
        shape = adjacencies[0].shape
        edges = torch.stack(adjacencies, dim=-1).flatten(0, 1).flatten(1, 2)  # [B * S, N * N, 3]
        t = self.edge_projection(edges)
        for layer in self.layers:
            t = recompute_in_backward(layer, t) if self.recompute else layer(t)
        return torch.tanh(self.output(t)).view(shape)
