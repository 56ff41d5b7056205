"""Section 9 of docs/model.md: decoder block."""

from torch import Tensor, nn

from pgat_fast.model.reference.attention import feed_forward


class DecoderBlock(nn.Module):
    """Post-norm block: self-attention of the decoder steps, cross-attention to the graph features, feed-forward."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(width, n_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = feed_forward(width, 4 * width, dropout)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, d: Tensor, graph: Tensor) -> Tensor:
        """Return decoder states [B, T, D] for decoder states d [B, T, D] and graph features [B, S, D]."""
        d = self.norm1(d + self.dropout(self.self_attention(d, d, d)[0]))
        d = self.norm2(d + self.dropout(self.cross_attention(d, graph, graph)[0]))
        return self.norm3(d + self.dropout(self.feed_forward(d)))
