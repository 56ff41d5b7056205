"""Section 8 of docs/model.md: processing of the encoded history with the combined adjacency."""

import torch
from torch import Tensor, nn

from pgat_fast.model.reference.attention import feed_forward


class PartitionedProcessing(nn.Module):
    """Section 8a: the last nodes are targets, the others covariates; targets aggregate covariates over the graph."""

    def __init__(self, width: int, nodes: int, targets: int) -> None:
        super().__init__()
        self.nodes, self.covariates = nodes, nodes - targets
        share = width // nodes
        self.covariate_interaction = nn.Linear(share, share)
        self.target_fusion = nn.Sequential(nn.Linear(2 * share, share), nn.GELU(), nn.Linear(share, share))

    def forward(self, encoded: Tensor, adjacency: Tensor) -> Tensor:
        """Return graph features [B, S, D] of the encoded history [B, S, D] and the adjacency [B, S, N, N]."""
        x = encoded.unflatten(-1, (self.nodes, -1))  # [B, S, N, D / N]
        adjacency = adjacency.to(x.dtype)
        c = self.covariates
        covariates, targets = x[:, :, :c], x[:, :, c:]
        to_covariates, to_targets = adjacency[:, :, :c], adjacency[:, :, c:]
        context = self.covariate_interaction(to_covariates[..., :c] @ covariates).mean(dim=2, keepdim=True)
        received = targets + to_targets[..., :c] @ covariates + to_targets[..., c:] @ targets
        targets = self.target_fusion(torch.cat((received, context.expand_as(received)), dim=-1))
        return torch.cat((covariates, targets), dim=2).flatten(2)


class GraphAttentionBlock(nn.Module):
    """Section 8b: post-norm block with attention restricted to neighbours in the graph."""

    def __init__(self, width: int, n_heads: int, dropout: float, threshold: float, bias: bool) -> None:
        super().__init__()
        self.n_heads, self.threshold = n_heads, threshold
        self.attention = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.adjacency_scale = nn.Parameter(torch.ones(1)) if bias else None
        self.norm1 = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, width, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Return node features [G, N, D] for node features x [G, N, D] and adjacency [G, N, N]."""
        mask = self.mask(adjacency).to(x.dtype).repeat_interleave(self.n_heads, dim=0)
        x = self.norm1(x + self.dropout(self.attention(x, x, x, attn_mask=mask)[0]))
        return self.norm2(x + self.dropout(self.feed_forward(x)))

    def mask(self, adjacency: Tensor) -> Tensor:
        """Return the bias of the scores: -inf for hidden keys; the diagonal is never hidden, so no row is empty."""
        diagonal = torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)
        hidden = (adjacency.abs() <= self.threshold) & ~diagonal
        bias = torch.zeros_like(adjacency) if self.adjacency_scale is None else self.adjacency_scale * adjacency
        return bias.masked_fill(hidden, float("-inf"))


class GraphAttention(nn.Module):
    """Section 8b: masked attention blocks over the nodes of every timestep."""

    def __init__(self, width: int, n_heads: int, layers: int, dropout: float, threshold: float, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GraphAttentionBlock(width, n_heads, dropout, threshold, bias) for _ in range(layers)
        )

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        """Return node features [B, S, N, D] for node features [B, S, N, D] and adjacency [B, S, N, N]."""
        x, graphs = nodes.flatten(0, 1), adjacency.flatten(0, 1)
        for layer in self.layers:
            x = layer(x, graphs)
        return x.view_as(nodes)
