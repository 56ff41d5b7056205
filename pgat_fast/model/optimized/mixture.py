"""Section 10: mixture decoder with attention that stores no weights."""

import torch
from torch import Tensor, nn

from pgat_fast.model.forecast import Mixture
from pgat_fast.model.optimized.fast_module import FastModule
from pgat_fast.model.reference.mixture import LOG_STD_RANGE, MixtureDecoder
from pgat_kernels.ops.dropout import dropout
from pgat_kernels.ops.graph_attention_blocks import HIDDEN


class FastMixtureDecoder(FastModule, MixtureDecoder):
    """Two pre-norm transformer decoder blocks over the forecast days, and a linear head for each parameter."""

    def forward(self, d: Tensor, graph: Tensor) -> Mixture:
        """Return the mixture for decoder states of the forecast days [B, P, D] and graph features [B, S, D]."""
        batch, steps, _ = d.shape
        is_later = torch.ones(steps, steps, dtype=torch.bool, device=d.device).triu(1)
        causal = (is_later.to(d.dtype) * HIDDEN).expand(batch, -1, -1).contiguous()
        d = d + self.positions[:steps]
        for layer in self.layers:
            d = self.block(layer, d, graph, causal)
        d = self.norm(d)
        shape = (self.targets, self.components)
        return Mixture(
            means=self.means(d).unflatten(-1, shape),
            log_stds=self.log_stds(d).unflatten(-1, shape).clamp(*LOG_STD_RANGE),
            log_weights=self.log_weights(d),
        )

    def block(self, layer: nn.Module, d: Tensor, graph: Tensor, causal: Tensor) -> Tensor:
        """Apply the transformer decoder block `layer`: [B, P, D] -> [B, P, D]."""
        assert isinstance(layer, nn.TransformerDecoderLayer)
        rate = self.rate(layer.dropout)
        seeds = [self.seed(rate, d.device) for _ in range(3)]
        x = layer.norm1(d)
        d = d + dropout(self.attend(layer.self_attn, x, x, seeds[0], causal), rate, seeds[2], 0)
        d = d + dropout(self.attend(layer.multihead_attn, layer.norm2(d), graph, seeds[1]), rate, seeds[2], 1)
        hidden = dropout(nn.functional.gelu(layer.linear1(layer.norm3(d))), rate, seeds[2], 2)
        return d + dropout(layer.linear2(hidden), rate, seeds[2], 3)
