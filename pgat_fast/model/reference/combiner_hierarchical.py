"""Section 6b of docs/model.md: hierarchical combiner, a token for every edge and kind, attention by source body."""

import torch
from torch import Tensor, nn

from pgat_fast.model.numerics import gate
from pgat_fast.model.reference.attention import IdenticalKeysAttention, feed_forward
from pgat_fast.model.reference.recompute import recompute_in_backward

KINDS = ("astronomical", "learned", "attention")
"""Kinds of edges, in the order of the three adjacencies."""

INTERACTIONS = {"astro_learned": (0, 1), "astro_attention": (0, 2), "learned_attention": (1, 2)}
"""Pairs of kinds with an interaction of their values, by name."""


class HierarchicalFusionBlock(nn.Module):
    """Post-norm block over the 39 tokens (3 kinds, 13 targets) that share a source body and a timestep."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.context_attention = IdenticalKeysAttention(width, n_heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, 4 * width, dropout)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, t: Tensor, context: Tensor) -> Tensor:
        """Return tokens [G, 3 N, D] for tokens [G, 3 N, D] and the context of their timestep [G, D]."""
        tokens = t.shape[1]
        t = self.norm1(t + self.dropout(self.attention(t, t, t)[0]))
        t = self.norm2(t + self.dropout(self.context_attention(context, queries=tokens, keys=tokens)))
        return self.norm3(t + self.dropout(self.feed_forward(t)))


def widening_layers(inputs: int, width: int) -> list[nn.Module]:
    """Build three linear layers with gelu between them: [..., inputs] -> [..., width]."""
    return [
        nn.Linear(inputs, width // 4),
        nn.GELU(),
        nn.Linear(width // 4, width // 2),
        nn.GELU(),
        nn.Linear(width // 2, width),
    ]


class PairInteraction(nn.Module):
    """Features of a pair of values of an edge, modulated by the context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.values = nn.Sequential(*widening_layers(2, width))
        self.modulation = nn.Linear(width, width)

    def forward(self, pair: Tensor, context: Tensor) -> Tensor:
        """Return features [M, E, D] of values [M, E, 2] in a context [M, 1, D]."""
        values = self.values(pair)
        return (values * gate(self.modulation(context))).to(values.dtype)


class HierarchicalCombiner(nn.Module):
    """Combination of three adjacencies of every timestep to one, given the context."""

    recompute = True
    """Whether the backward pass recomputes the layers instead of keeping their activations."""

    def __init__(self, width: int, n_heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.edge_transforms = nn.ModuleDict(
            {kind: nn.Sequential(*widening_layers(1, width), nn.LayerNorm(width)) for kind in KINDS}
        )
        self.layers = nn.ModuleList(HierarchicalFusionBlock(width, n_heads, dropout) for _ in range(layers))
        self.edge_attention = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.interactions = nn.ModuleDict({name: PairInteraction(width) for name in INTERACTIONS})
        self.calibration = nn.Sequential(
            nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.output = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, adjacencies: tuple[Tensor, Tensor, Tensor], context: Tensor) -> Tensor:
        """Combine adjacencies [B, S, N, N] in a context [B, S, D] to [B, S, N, N] in (-1, 1)."""
        shape = adjacencies[0].shape
        nodes, width = shape[-1], context.shape[-1]
        context = context.flatten(0, 1)  # [M, D] with M = B * S
        values = torch.stack(adjacencies, dim=-1).flatten(0, 1)  # [M, N, N, 3]

        kinds = [self.edge_transforms[kind](values[..., k, None]) for k, kind in enumerate(KINDS)]
        t = torch.stack(kinds, dim=2).view(-1, len(KINDS) * nodes, width)  # group = (timestep, source): [M * N, 3 N, D]
        group_context = context.repeat_interleave(nodes, dim=0)  # [M * N, D]
        for layer in self.layers:
            inputs = (t, group_context)
            t = recompute_in_backward(layer, *inputs) if self.recompute else layer(*inputs)

        edges = nodes * nodes
        edge_tokens = (
            t.view(-1, nodes, len(KINDS), nodes, width).transpose(2, 3).reshape(-1, len(KINDS), width)
        )  # [M * E, 3, D]
        query = context.repeat_interleave(edges, dim=0)[:, None]  # [M * E, 1, D]
        y = self.edge_attention(query, edge_tokens, edge_tokens)[0].view(-1, edges, width)

        values, context = values.flatten(1, 2), context[:, None]  # [M, E, 3], [M, 1, D]
        for name, pair in INTERACTIONS.items():
            y = y + self.interactions[name](values[..., pair], context)
        y = (y * gate(self.calibration(torch.cat((y, context.expand_as(y)), dim=-1)))).to(y.dtype)
        return torch.tanh(self.output(y)).view(shape)
