"""Attention whose keys are all the same, and the feed-forward that follows attention everywhere.

Everything else uses `torch.nn.MultiheadAttention` as it is.
"""

from torch import Tensor, nn


class SingleKeyAttention(nn.Module):
    """Multi-head attention over ONE key: its weight is 1, so only the value path is left.

    The query and key weights of the original cannot receive a gradient and do not exist here. The head count drops
    out of the result. [..., n] -> [..., n].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.value(x))


class IdenticalKeysAttention(nn.Module):
    """Multi-head attention over K keys that are all the same vector: every weight is 1/K, whatever the query.

    The query and key weights of the original cannot receive a gradient and do not exist here. What is left of the
    attention is its dropout, which acts on the K weights of every query and head; the weights are materialised as
    `torch.nn.MultiheadAttention` does.
    """

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, context: Tensor, queries: int, keys: int) -> Tensor:
        """The repeated key, context [G, D], seen by `queries` queries as `keys` keys -> [G, queries, D]."""
        groups, width = context.shape
        value = self.value(context).view(groups, self.n_heads, 1, width // self.n_heads)
        weights = self.dropout(value.new_full((groups, self.n_heads, queries, keys), 1 / keys))
        attended = weights @ value.expand(-1, -1, keys, -1)  # [G, H, queries, d]
        return self.output(attended.transpose(1, 2).flatten(2))


def feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Linear, gelu, dropout, linear: [..., width] -> [..., width]."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
