"""Section 6a: the batched combiner as one operator over chunks of timesteps."""

from typing import Any

import torch
from torch import Tensor

from pgat_fast.model.optimized.part import Part, attention_weights, feed_forward_weights, output_weights
from pgat_fast.model.reference.combiner_batched import BatchedCombiner
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.combiner_batched import CombinerWeights, batched_combiner, numbers_a_timestep
from pgat_kernels.ops.low_rank_attention import low_rank_weights


class FastBatchedCombiner(Part, BatchedCombiner):
    """Combination of three adjacencies of every timestep to one."""

    def weights(self) -> CombinerWeights:
        """Return the parameters in the form that the operator takes."""
        layers: list[Any] = list(self.layers)
        first, *others = layers
        attention = first.attention
        return CombinerWeights(
            low_rank_weights(
                self.edge_projection.weight,
                self.edge_projection.bias,
                attention.in_proj_weight,
                attention.in_proj_bias,
                attention.out_proj.weight,
                attention.out_proj.bias,
                first.norm1.weight,
                first.norm1.bias,
                attention.num_heads,
            ),
            tuple(attention_weights(layer.attention, layer.norm1) for layer in others),
            tuple(feed_forward_weights(layer.feed_forward, layer.norm2) for layer in layers),
            output_weights(self.output),
        )

    def forward(self, adjacencies: tuple[Tensor, Tensor, Tensor], context: Tensor) -> Tensor:
        """Combine adjacencies [B, S, N, N] to [B, S, N, N] in (-1, 1); the context [B, S, D] is not used."""
        shape = adjacencies[0].shape
        edges = torch.stack(adjacencies, dim=-1).flatten(0, 1).flatten(1, 2)  # [B * S, N * N, 3]
        first: Any = self.layers[0]
        n_heads = first.attention.num_heads
        rate = self.rate(self.output[2])
        dtype = self.product_dtype(edges)
        chunk = self.chunk(len(edges), numbers_a_timestep(edges.shape[1], n_heads), dtype, edges.device)
        with no_autocast(edges.device):
            merged = batched_combiner(
                [edges],
                self.weights().flat(),
                self.seed(rate, edges.device),
                rate,
                [n_heads, int(self.execution.kernels)],
                chunk,
                dtype,
                self.execution.compiled,
                self.execution.keep,
            )
        return merged.view(shape)
