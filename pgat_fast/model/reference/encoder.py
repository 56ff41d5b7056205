"""Section 7 of docs/model.md: dynamic spatio-temporal encoder over S * N tokens."""

import torch
from torch import Tensor, nn

from pgat_fast.model.numerics import at_least_float32, beyond_float16, gate

KERNELS = (1, 3, 5, 7)
HOPS = 3


class SpatioTemporalEncoder(nn.Module):
    """Encoder of market states and adjacencies to node features."""

    def __init__(self, width: int, n_heads: int, nodes: int, steps: int, dropout: float) -> None:
        super().__init__()
        self.nodes, self.n_heads = nodes, n_heads
        self.node_projection = nn.Linear(width, nodes * width)
        self.spatial_positions = nn.Parameter(torch.empty(nodes, width))
        self.temporal_positions = nn.Parameter(torch.empty(steps, width))
        self.temporal_convolutions = nn.ModuleList(nn.Conv1d(width, width, k, padding=k // 2) for k in KERNELS)
        self.temporal_norm = nn.LayerNorm(width)
        self.spatial_convolutions = nn.ModuleList(nn.Linear(width, width) for _ in range(HOPS))
        self.spatial_norm = nn.LayerNorm(width)
        self.interaction = nn.Parameter(torch.empty(n_heads, width // n_heads, width // n_heads))
        self.attention = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.interaction_gate = nn.Linear(2 * width, width)
        self.attention_gate = nn.Linear(2 * width, width)
        self.fusion_gate = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.output_norm = nn.LayerNorm(width)

    def temporal(self, x: Tensor) -> Tensor:
        """Apply the convolutions along time of every node: [B, S, N, D] -> [B, S, N, D]."""
        batch, steps, nodes, width = x.shape
        series = x.permute(0, 2, 3, 1).reshape(batch * nodes, width, steps)
        total = torch.stack([torch.relu(convolution(series)) for convolution in self.temporal_convolutions]).mean(dim=0)
        mixed = total.view(batch, nodes, width, steps).permute(0, 3, 1, 2)
        return self.temporal_norm(mixed + x)

    def spatial(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Apply graph convolutions over one to three hops: [B, S, N, D], [B, S, N, N] -> [B, S, N, D]."""
        adjacency = at_least_float32(adjacency)
        connected = adjacency + torch.eye(self.nodes, dtype=adjacency.dtype, device=x.device)
        degree = connected.sum(dim=-1, keepdim=True)
        transition = connected / torch.where(degree == 0, torch.ones_like(degree), degree)
        hops, hop_states = [], x
        with beyond_float16(x):  # a degree near zero gives transitions of about 1e6
            for convolution in self.spatial_convolutions:
                hop_states = transition.to(x.dtype) @ hop_states
                hops.append(torch.relu(convolution(hop_states)))
            return self.spatial_norm(torch.stack(hops).mean(dim=0) + x)

    def forward(self, e: Tensor, adjacency: Tensor) -> Tensor:
        """Encode market states [B, S, D] and adjacency [B, S, N, N]; return node features [B, S, N, D]."""
        x0 = self.node_projection(e).unflatten(-1, (self.nodes, -1))
        x = x0 + self.spatial_positions + self.temporal_positions[: e.shape[1], None]
        temporal, spatial = self.temporal(x), self.spatial(x, adjacency)

        per_head = spatial.unflatten(-1, (self.n_heads, -1))
        interaction = temporal * torch.einsum("hij,bsnhj->bsnhi", self.interaction, per_head).flatten(-2)
        query, key = temporal.flatten(1, 2), spatial.flatten(1, 2)  # [B, S * N, D]
        attended = self.attention(query, key, key)[0].view_as(x0)

        z = gate(self.interaction_gate(torch.cat((interaction, x0), dim=-1))) * interaction
        z = (z + gate(self.attention_gate(torch.cat((attended, x0), dim=-1))) * attended).to(x0.dtype)
        g = gate(self.fusion_gate(torch.cat((z, x0), dim=-1)))
        fused = (g * z + (1 - g) * x0).to(x0.dtype)
        return self.output_norm(self.dropout(fused))
