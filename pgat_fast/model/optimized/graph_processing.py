"""Section 8b: graph attention as one operator over chunks of timesteps."""

from typing import Any

import torch
from torch import Tensor

from pgat_fast.model.optimized.fast_module import FastModule, attention_weights, feed_forward_weights
from pgat_fast.model.reference.graph_processing import GraphAttention
from pgat_kernels.ops.graph_attention_blocks import HIDDEN, graph_attention_blocks, numbers_a_timestep


class FastGraphAttention(FastModule, GraphAttention):
    """Masked attention blocks over the nodes of every timestep."""

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        """Return node features [B, S, N, D] for node features [B, S, N, D] and adjacency [B, S, N, N]."""
        layers: list[Any] = list(self.layers)
        first = layers[0]
        rate = self.rate(first.dropout)
        x, graphs = nodes.flatten(0, 1).contiguous(), adjacency.flatten(0, 1).contiguous()
        diagonal = torch.eye(graphs.shape[-1], dtype=torch.bool, device=graphs.device)
        hidden = ((graphs.abs() <= first.threshold) & ~diagonal).to(x.dtype) * HIDDEN
        scaled = first.adjacency_scale is not None
        weights = [
            tensor
            for layer in layers
            for tensor in (
                *attention_weights(layer.attention, layer.norm1),
                *feed_forward_weights(layer.feed_forward, layer.norm2),
                *((layer.adjacency_scale,) if scaled else ()),
            )
        ]
        rows, options, numbers = [x, graphs, hidden], [first.n_heads, int(scaled)], numbers_a_timestep(*x.shape[1:])
        return self.over_timesteps(graph_attention_blocks, rows, weights, rate, options, numbers).view_as(nodes)
