"""Attention over identical keys, and the feed-forward layers of all attention blocks.

All other attention is `torch.nn.MultiheadAttention`.
"""

from torch import Tensor, nn


class SingleKeyAttention(nn.Module):
    """Multi-head attention over one key: its weight is 1, so only the value and output projections remain.

    The query and key weights of the original cannot receive a gradient and do not exist here. The result does not
    depend on the number of heads. [..., n] -> [..., n].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.value(x))


class IdenticalKeysAttention(nn.Module):
    """Multi-head attention over K identical keys: every weight is 1/K for any query.

    The query and key weights of the original cannot receive a gradient and do not exist here. Dropout still acts on the
    K weights of every query and head; the weights are materialised as in `torch.nn.MultiheadAttention`.
    """

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, context: Tensor, queries: int, keys: int) -> Tensor:
        """Attend with `queries` queries to `keys` copies of the context [G, D]; return [G, queries, D]."""
        groups, width = context.shape
        value = self.value(context).view(groups, self.n_heads, 1, width // self.n_heads)
        weights = self.dropout(value.new_full((groups, self.n_heads, queries, keys), 1 / keys))
        attended = weights @ value.expand(-1, -1, keys, -1)  # [G, H, queries, d]
        return self.output(attended.transpose(1, 2).flatten(2))


def feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Build the layers linear, gelu, dropout, linear: [..., width] -> [..., width]."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
