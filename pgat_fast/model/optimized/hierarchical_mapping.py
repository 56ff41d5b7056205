"""Section 10: hierarchical mapping with attention that stores no weights."""

import torch
from torch import Tensor, nn

from pgat_fast.model.optimized.fast_module import FastModule, add_and_norm
from pgat_fast.model.reference.hierarchical_mapping import HierarchicalMapping
from pgat_kernels.ops.dropout import dropout


class FastHierarchicalMapping(FastModule, HierarchicalMapping):
    """Convolution, two post-norm transformer blocks, pooling from S steps to N nodes, projection."""

    def block(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply the transformer block `layer`: [B, S, D] -> [B, S, D]."""
        assert isinstance(layer, nn.TransformerEncoderLayer)
        rate = self.rate(layer.dropout)
        seeds = [self.seed(rate, x.device) for _ in range(2)]
        x = add_and_norm(x, self.attend(layer.self_attn, x, x, seeds[0]), layer.norm1, rate, seeds[1], 0)
        hidden = dropout(torch.relu(layer.linear1(x)), rate, seeds[1], 1)
        return add_and_norm(x, layer.linear2(hidden), layer.norm2, rate, seeds[1], 2)
