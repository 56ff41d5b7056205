"""Section 5 of docs/model.md: learned adjacency, and mixture of normalised adjacencies."""

import torch
from torch import Tensor, nn

from pgat_fast.model.numerics import at_least_float32


def normalize(adjacency: Tensor) -> Tensor:
    """Return (A + I) / (row sum of (A + I) + 1e-8), [..., N, N], at least float32."""
    adjacency = at_least_float32(adjacency)
    connected = adjacency + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
    return connected / (connected.sum(dim=-1, keepdim=True) + 1e-8)


class AdjacencyLearner(nn.Module):
    """Learned signed adjacency of every timestep: [B, S, D] -> [B, S, N, N] in (-1, 1)."""

    def __init__(self, width: int, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        self.hidden = nn.Linear(width, width)
        self.output = nn.Linear(width, nodes * nodes)

    def forward(self, e: Tensor) -> tuple[Tensor, None]:
        learned = torch.tanh(self.output(nn.functional.gelu(self.hidden(e))))
        return learned.unflatten(-1, (self.nodes, self.nodes)), None


class StochasticAdjacencyLearner(nn.Module):
    """Normal distribution over adjacencies: returns a sample in training, the mean in evaluation.

    [B, S, D] -> adjacency [B, S, N, N], unbounded, and the scalar KL(N(mean, var) || N(0, 1)), summed over entries
    and averaged over B and S.
    """

    def __init__(self, width: int, nodes: int) -> None:
        super().__init__()
        self.nodes = nodes
        self.mean = nn.Linear(width, nodes * nodes)
        self.log_variance = nn.Linear(width, nodes * nodes)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = at_least_float32(self.mean(e)), at_least_float32(self.log_variance(e))
        sample = mean
        if self.training:
            sample = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return sample.unflatten(-1, (self.nodes, self.nodes)), kl.sum(dim=-1).mean()


class AdjacencyMixer(nn.Module):
    """Convex combination of three normalised adjacencies, with weights computed from a context."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width // 2)
        self.output = nn.Linear(width // 2, 3)

    def forward(self, context: Tensor, adjacencies: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Mix three adjacencies that broadcast against [..., N, N], by a context [..., D]; return [..., N, N]."""
        scores = self.output(torch.relu(self.hidden(context)))
        weights = torch.softmax(at_least_float32(scores), dim=-1)[..., None, None]  # [..., 3, 1, 1]
        mixed = [weights[..., k, :, :] * normalize(a) for k, a in enumerate(adjacencies)]
        return mixed[0] + mixed[1] + mixed[2]
