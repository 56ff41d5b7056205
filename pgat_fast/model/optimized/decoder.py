"""Section 9 with attention that stores no weights, and feed-forward layers that the backward pass recomputes."""

from torch import Tensor
from torch.nn import functional as F

from pgat_fast.model.optimized.fast_module import FastModule, add_and_norm, recomputed
from pgat_fast.model.reference.decoder import DecoderBlock
from pgat_kernels.ops.dropout import dropout


class FastDecoderBlock(FastModule, DecoderBlock):
    """Post-norm block: self-attention of the decoder steps, cross-attention to the graph features, feed-forward."""

    def forward(self, d: Tensor, graph: Tensor) -> Tensor:
        """Return decoder states [B, T, D] for decoder states d [B, T, D] and graph features [B, S, D]."""
        rate = self.rate(self.dropout)
        seeds = [self.seed(rate, d.device) for _ in range(3)]
        attended = self.attend(self.self_attention, d, d, seeds[0])
        d = add_and_norm(d, attended, self.norm1, rate, seeds[2], 0)
        attended = self.attend(self.cross_attention, d, graph, seeds[1])
        d = add_and_norm(d, attended, self.norm2, rate, seeds[2], 1)

        def feed_forward(d: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
            return F.linear(dropout(F.gelu(F.linear(d, w1, b1)), rate, seeds[2], 2), w2, b2)

        y = recomputed(feed_forward, d, *self.feed_forward.parameters())
        return add_and_norm(d, y, self.norm3, rate, seeds[2], 3)
