"""Section 6b: the hierarchical combiner as one operator over chunks of timesteps."""

from typing import Any

import torch
from torch import Tensor

from pgat_fast.model.optimized.part import Part, attention_weights, feed_forward_weights, output_weights
from pgat_fast.model.reference.combiner_hierarchical import INTERACTIONS, KINDS, HierarchicalCombiner
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.combiner_hierarchical import (
    BlockWeights,
    HierarchicalWeights,
    hierarchical_combiner,
    numbers_a_timestep,
)
from pgat_kernels.ops.edge_tokens import EdgeTransform
from pgat_kernels.ops.hierarchical_parts import CalibrationWeights, ContextWeights, PairWeights, QueryWeights


class FastHierarchicalCombiner(Part, HierarchicalCombiner):
    """Combination of three adjacencies of every timestep to one, given the context."""

    def weights(self) -> HierarchicalWeights:
        """Return the parameters in the form that the operator takes."""

        def block(layer: Any) -> BlockWeights:
            attention = layer.context_attention
            context = ContextWeights(
                attention.value.weight,
                attention.value.bias,
                attention.output.weight,
                attention.output.bias,
                layer.norm2.weight,
                layer.norm2.bias,
            )
            return BlockWeights(
                attention_weights(layer.attention, layer.norm1),
                context,
                feed_forward_weights(layer.feed_forward, layer.norm3),
            )

        transforms = []
        for kind in KINDS:
            net: Any = self.edge_transforms[kind]
            transforms.append(EdgeTransform(*(x for i in (0, 2, 4, 5) for x in (net[i].weight, net[i].bias))))
        interactions = []
        for name in INTERACTIONS:
            pair: Any = self.interactions[name]
            layers = (pair.values[0], pair.values[2], pair.values[4], pair.modulation)
            interactions.append(PairWeights(*(x for layer in layers for x in (layer.weight, layer.bias))))
        attention: Any = self.edge_attention
        width = attention.embed_dim
        q, k, v = attention.in_proj_weight.split(width)
        q_bias, _, v_bias = attention.in_proj_bias.split(width)
        scale = attention.head_dim**-0.5
        query = QueryWeights(
            q * scale, q_bias * scale, k, v, v_bias, attention.out_proj.weight, attention.out_proj.bias
        )
        calibration_layers: list[Any] = list(self.calibration)
        first, second, third = calibration_layers[::2]
        calibration = CalibrationWeights(
            first.weight[:, :width],
            first.weight[:, width:],
            first.bias,
            second.weight,
            second.bias,
            third.weight,
            third.bias,
        )
        return HierarchicalWeights(
            tuple(transforms),
            tuple(block(layer) for layer in self.layers),
            query,
            tuple(interactions),
            calibration,
            output_weights(self.output),
        )

    def forward(self, adjacencies: tuple[Tensor, Tensor, Tensor], context: Tensor) -> Tensor:
        """Combine adjacencies [B, S, N, N] in a context [B, S, D] to [B, S, N, N] in (-1, 1)."""
        shape = adjacencies[0].shape
        values = torch.stack(adjacencies, dim=-1).flatten(0, 1)  # [B * S, N, N, 3]
        rate = self.rate(self.output[2])
        dtype = self.product_dtype(values)
        chunk = self.chunk(len(values), numbers_a_timestep(shape[-1], context.shape[-1]), dtype, values.device)
        with no_autocast(values.device):
            merged = hierarchical_combiner(
                [values, context.flatten(0, 1).contiguous()],
                self.weights().flat(),
                self.seed(rate, values.device),
                rate,
                [self.edge_attention.num_heads, int(self.execution.exact_dropout), int(self.execution.kernels)],
                chunk,
                dtype,
                self.execution.compiled,
                self.execution.keep,
            )
        return merged.view(shape)
