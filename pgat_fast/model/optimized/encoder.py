"""Section 7 with attention that stores no weights, and few tensors kept for the backward pass.

Four tensors [B, S, N, D] are kept: the node features, their convolutions along time and along the graph, and the
attention result before its output projection. The backward pass recomputes everything between them. Products with the
same input are combined: the three gates multiply X0 by one matrix, W [a; b] = W_a a + W_b b. The heads of the
interaction, D / H columns each, are one product with a block-diagonal matrix.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pgat_fast.model.numerics import at_least_float32, beyond_float16, gate
from pgat_fast.model.optimized.fast_module import FastModule, recomputed
from pgat_fast.model.reference.encoder import SpatioTemporalEncoder
from pgat_kernels.ops.dropout import dropout


def _temporal(x0: Tensor, positions: Tensor, norm: Tensor, norm_bias: Tensor, *convolutions: Tensor) -> Tensor:
    """Return LayerNorm(mean_k relu(Conv_k X) + X) along time of every node, [B, S, N, D].

    `convolutions`: weights and biases in turn.
    """
    batch, steps, nodes, width = x0.shape
    x = x0 + positions
    series = x.permute(0, 2, 3, 1).reshape(batch * nodes, width, steps)
    total = None
    for weight, bias in zip(convolutions[::2], convolutions[1::2], strict=True):
        y = torch.relu(F.conv1d(series, weight, bias, padding=weight.shape[-1] // 2))
        total = y if total is None else total + y
    assert total is not None
    mean = total * (2 / len(convolutions))
    mixed = mean.view(batch, nodes, width, steps).permute(0, 3, 1, 2)
    return F.layer_norm(mixed + x, (width,), norm, norm_bias)


def _spatial(
    x0: Tensor, positions: Tensor, adjacency: Tensor, norm: Tensor, norm_bias: Tensor, *hops: Tensor
) -> Tensor:
    """Return LayerNorm(mean_h relu(W_h transition^h X) + X): [B, S, N, D], [B, S, N, N] -> [B, S, N, D]."""
    x = x0 + positions
    adjacency = at_least_float32(adjacency)
    connected = adjacency + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=x.device)
    degree = connected.sum(dim=-1, keepdim=True)
    transition = connected / torch.where(degree == 0, torch.ones_like(degree), degree)
    total, hop_states = None, x
    with beyond_float16(x):  # a degree near zero gives transitions of about 1e6
        for weight, bias in zip(hops[::2], hops[1::2], strict=True):
            hop_states = transition.to(x.dtype) @ hop_states
            y = torch.relu(F.linear(hop_states, weight, bias))
            total = y if total is None else total + y
        assert total is not None
        return F.layer_norm(total * (2 / len(hops)) + x, (x.shape[-1],), norm, norm_bias)


def _fuse(
    x0: Tensor,
    temporal: Tensor,
    spatial: Tensor,
    heads: Tensor,
    seed: Tensor,
    outer: Tensor,
    outer_bias: Tensor,
    interaction_matrices: Tensor,
    norm: Tensor,
    norm_bias: Tensor,
    *gates: Tensor,
    rate: float,
) -> Tensor:
    """Apply the interaction, the attention's output projection, three gates, dropout, LayerNorm: [B, S, N, D]."""
    width = x0.shape[-1]
    interaction = temporal * F.linear(spatial, torch.block_diag(*interaction_matrices.unbind(0)))
    attended = F.linear(heads, outer, outer_bias)
    weights, biases = gates[::2], gates[1::2]
    branch_weights = [weight[:, :width] for weight in weights]
    shared = F.linear(x0, torch.cat([weight[:, width:] for weight in weights]), torch.cat(biases)).chunk(3, dim=-1)
    z = gate(F.linear(interaction, branch_weights[0]) + shared[0]) * interaction
    z = (z + gate(F.linear(attended, branch_weights[1]) + shared[1]) * attended).to(x0.dtype)
    g = gate(F.linear(z, branch_weights[2]) + shared[2])
    fused = (g * z + (1 - g) * x0).to(x0.dtype)
    return F.layer_norm(dropout(fused, rate, seed, 0), (width,), norm, norm_bias)


class FastSpatioTemporalEncoder(FastModule, SpatioTemporalEncoder):
    """Encoder of market states and adjacencies to node features."""

    def forward(self, e: Tensor, adjacency: Tensor) -> Tensor:
        """Encode market states [B, S, D] and adjacency [B, S, N, N]; return node features [B, S, N, D]."""
        rate = self.rate(self.dropout)
        seeds = self.seed(rate, e.device), self.seed(rate, e.device)
        x0 = self.node_projection(e).unflatten(-1, (self.nodes, -1))
        positions = self.spatial_positions + self.temporal_positions[: e.shape[1], None]  # [S, N, D]
        along_time = (*self.temporal_norm.parameters(), *self.temporal_convolutions.parameters())
        along_graph = (*self.spatial_norm.parameters(), *self.spatial_convolutions.parameters())
        temporal = recomputed(_temporal, x0, positions, *along_time)
        spatial = recomputed(_spatial, x0, positions, adjacency, *along_graph)
        heads = self.attend_heads(self.attention, temporal.flatten(1, 2), spatial.flatten(1, 2), seeds[0])
        return recomputed(
            partial(_fuse, rate=rate),
            x0,
            temporal,
            spatial,
            heads.view_as(x0),
            seeds[1],
            *self.attention.out_proj.parameters(),
            self.interaction,
            *self.output_norm.parameters(),
            *self.interaction_gate.parameters(),
            *self.attention_gate.parameters(),
            *self.fusion_gate.parameters(),
        )
