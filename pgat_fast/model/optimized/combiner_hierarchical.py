"""Section 6b: the hierarchical combiner as one operator over chunks of timesteps."""

from typing import Any

import torch
from torch import Tensor

from pgat_fast.model.optimized.fast_module import FastModule, attention_weights, feed_forward_weights
from pgat_fast.model.reference.combiner_hierarchical import INTERACTIONS, KINDS, HierarchicalCombiner
from pgat_kernels.ops.combiner_hierarchical import (
    BlockWeights,
    HierarchicalWeights,
    hierarchical_combiner,
    numbers_a_timestep,
)
from pgat_kernels.ops.edge_tokens import EdgeTransform
from pgat_kernels.ops.hierarchical_parts import CalibrationWeights, ContextWeights, PairWeights, QueryWeights
from pgat_kernels.ops.plain_blocks import OutputWeights


class FastHierarchicalCombiner(FastModule, HierarchicalCombiner):
    """Combination of three adjacencies of every timestep to one, given the context."""

    def weights(self) -> HierarchicalWeights:
        """Return the parameters in the form that the operator takes."""

        def block(layer: Any) -> BlockWeights:
            return BlockWeights(
                attention_weights(layer.attention, layer.norm1),
                ContextWeights(*layer.context_attention.parameters(), *layer.norm2.parameters()),
                feed_forward_weights(layer.feed_forward, layer.norm3),
            )

        attention: Any = self.edge_attention
        width = attention.embed_dim
        q, k, v = attention.in_proj_weight.split(width)
        q_bias, _, v_bias = attention.in_proj_bias.split(width)
        scale = attention.head_dim**-0.5
        first, *others = self.calibration.parameters()
        return HierarchicalWeights(
            tuple(EdgeTransform(*self.edge_transforms[kind].parameters()) for kind in KINDS),
            tuple(block(layer) for layer in self.layers),
            QueryWeights(q * scale, q_bias * scale, k, v, v_bias, *attention.out_proj.parameters()),
            tuple(PairWeights(*self.interactions[name].parameters()) for name in INTERACTIONS),
            CalibrationWeights(first[:, :width], first[:, width:], *others),
            OutputWeights(*self.output.parameters()),
        )

    def forward(self, adjacencies: tuple[Tensor, Tensor, Tensor], context: Tensor) -> Tensor:
        """Combine adjacencies [B, S, N, N] in a context [B, S, D] to [B, S, N, N] in (-1, 1)."""
        shape = adjacencies[0].shape
        values = torch.stack(adjacencies, dim=-1).flatten(0, 1)  # [B * S, N, N, 3]
        rows = [values, context.flatten(0, 1).contiguous()]
        rate, numbers = self.rate(self.output[2]), numbers_a_timestep(shape[-1], context.shape[-1])
        options = [self.edge_attention.num_heads, int(self.execution.exact_dropout)]
        merged = self.over_timesteps(hierarchical_combiner, rows, self.weights().flat(), rate, options, numbers)
        return merged.view(shape)
