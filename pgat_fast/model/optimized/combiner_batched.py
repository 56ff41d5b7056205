"""Section 6a: the batched combiner as one operator over chunks of timesteps."""

from typing import Any

import torch
from torch import Tensor

from pgat_fast.model.optimized.fast_module import FastModule, attention_weights, feed_forward_weights
from pgat_fast.model.reference.combiner_batched import BatchedCombiner
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.combiner_batched import CombinerWeights, batched_combiner, numbers_a_timestep
from pgat_kernels.ops.low_rank_attention import low_rank_weights
from pgat_kernels.ops.plain_blocks import OutputWeights


class FastBatchedCombiner(FastModule, BatchedCombiner):
    """Combination of three adjacencies of every timestep to one."""

    def weights(self) -> CombinerWeights:
        """Return the parameters in the form that the operator takes."""
        layers: list[Any] = list(self.layers)
        first, *others = layers
        maps: list[Any] = [self.edge_projection, first.attention, first.norm1]
        parameters = [parameter for module in maps for parameter in module.parameters()]
        return CombinerWeights(
            low_rank_weights(*parameters, n_heads=first.attention.num_heads),
            tuple(attention_weights(layer.attention, layer.norm1) for layer in others),
            tuple(feed_forward_weights(layer.feed_forward, layer.norm2) for layer in layers),
            OutputWeights(*self.output.parameters()),
        )

    def forward(self, adjacencies: tuple[Tensor, Tensor, Tensor], context: Tensor) -> Tensor:
        """Combine adjacencies [B, S, N, N] to [B, S, N, N] in (-1, 1); the context [B, S, D] is not used."""
        shape = adjacencies[0].shape
        edges = torch.stack(adjacencies, dim=-1).flatten(0, 1).flatten(1, 2)  # [B * S, N * N, 3]
        first: Any = self.layers[0]
        n_heads = first.attention.num_heads
        rate, numbers = self.rate(self.output[2]), numbers_a_timestep(edges.shape[1], n_heads)
        with no_autocast(edges.device):  # round only the composed weights
            weights = self.weights().flat()
        return self.over_timesteps(batched_combiner, [edges], weights, rate, [n_heads], numbers).view(shape)
