"""Section 10 of docs/model.md: hierarchical mapping, which adds a summary vector of the history to every state."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HierarchicalMapping(nn.Module):
    """Convolution, two post-norm transformer blocks, pooling from S steps to N nodes, projection."""

    def __init__(self, width: int, n_heads: int, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        self.convolution = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, n_heads, 4 * width, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.node_projection = nn.Linear(width, width)
        self.projection = nn.Linear(nodes * width, width)

    def map_nodes(self, e: Tensor) -> Tensor:
        """Return node summaries [B, N, D] of market states [B, S, D]."""
        x = self.convolution(e.transpose(1, 2)).transpose(1, 2)
        x = torch.relu(self.norm(x + e))
        for layer in self.layers:
            x = self.block(layer, x)
        series = x.transpose(1, 2)  # [B, D, S]
        if series.shape[-1] < self.nodes:
            pooled = F.interpolate(series, size=self.nodes, mode="linear", align_corners=False)
        else:
            pooled = F.adaptive_avg_pool1d(series, self.nodes)
        return self.node_projection(pooled.transpose(1, 2))

    def block(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply one transformer block: [B, S, D] -> [B, S, D]."""
        return layer(x)

    def forward(self, e: Tensor) -> Tensor:
        """Add the summary of the history to market states e [B, S, D]; return [B, S, D]."""
        return e + self.projection(self.map_nodes(e).flatten(1))[:, None]
