"""Section 1 of the architecture: phase-aware processor, from input columns to body features and phase adjacency."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_fast.config.schema import BODY_CHANNELS as C
from pgat_fast.data.columns import BODIES, named_features, positional_features
from pgat_fast.model.reference.attention import SingleKeyAttention

PAIRS = torch.triu_indices(len(BODIES), len(BODIES), offset=1)
"""The 78 pairs i < j, [2, 78]."""


class BodyProcessor(nn.Module):
    """One body's columns to its features: attention over one key, feed-forward, recurrence along time."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.attention = SingleKeyAttention(features)
        self.expand = nn.Linear(features, 2 * C)
        self.project = nn.Linear(2 * C, C)
        self.norm = nn.LayerNorm(C)
        self.gru = nn.GRU(C, C, batch_first=True)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, n_b] -> [B, S, C]."""
        z = self.attention(x)
        r = self.norm(self.project(self.dropout(F.gelu(self.expand(z)))))
        recurrent, _ = self.gru(r)
        return r + recurrent


class PhaseQuantities(nn.Module):
    """Angles, speeds and distances of every body, read from the input columns by name.

    Angles are atan2(sin, cos) in radians. A body that lacks a quantity has: the angle of its longitude, speed 0,
    distance 1.
    """

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        known = [named_features(body) for body in BODIES]
        longitude = [("sin", "cos") if "sin" in k else ("ecliptic_sin", "ecliptic_cos") for k in known]
        angles = [longitude, [("sign_sin", "sign_cos")] * len(BODIES), [("ecliptic_sin", "ecliptic_cos")] * len(BODIES)]
        index = [
            [
                [k.get(name, k[default]) for name, default in zip(pair, fallback, strict=True)]
                for k, pair, fallback in row
            ]
            for row in (zip(known, angle, longitude, strict=True) for angle in angles)
        ]
        self.register_buffer("index", torch.tensor(index), persistent=False)  # [3 angles, N, (sin, cos)]
        for quantity in ("speed", "distance"):
            present = [i for i, k in enumerate(known) if quantity in k]
            self.register_buffer(f"{quantity}_bodies", torch.tensor(present), persistent=False)
            columns = [known[i][quantity] for i in present]
            self.register_buffer(f"{quantity}_columns", torch.tensor(columns), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, F] -> angles [B, 3 (longitude, sign, ecliptic), N] in radians, speeds [B, N], distances [B, N]."""
        sin, cos = x[:, self.index].unbind(-1)
        speed = x.new_zeros(x.shape[0], len(BODIES))
        speed = speed.index_copy(1, self.get_buffer("speed_bodies"), x[:, self.get_buffer("speed_columns")])
        distance = x.new_ones(x.shape[0], len(BODIES))
        distance = distance.index_copy(1, self.get_buffer("distance_bodies"), x[:, self.get_buffer("distance_columns")])
        return torch.atan2(sin, cos), speed, distance


class PhaseEdges(nn.Module):
    """Phase adjacency of the last timestep from body features and phase differences."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.quantities = PhaseQuantities() if computed else None
        self.predictor = nn.Sequential(
            nn.Linear(2 * C + 6, C),
            nn.GELU(),
            nn.Linear(C, C // 2),
            nn.GELU(),
            nn.Linear(C // 2, 1),
        )
        self.weights = nn.Parameter(torch.ones(6))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Body features h [B, N, C] and inputs x [B, F] of one timestep -> adjacency [B, N, N] in [0, 1)."""
        batch, nodes, _ = h.shape
        if self.quantities is None:
            angles, speed, distance = h.new_zeros(batch, 3, nodes), h.new_zeros(batch, nodes), h.new_zeros(batch, nodes)
        else:
            angles, speed, distance = self.quantities(x)
        i, j = PAIRS.to(h.device)
        difference = angles[:, :, i] - angles[:, :, j]
        d_theta, d_phi, d_lon = torch.atan2(difference.sin(), difference.cos()).unbind(1)
        d_speed = speed[:, i] - speed[:, j]
        ratio = distance[:, i] / (distance[:, j] + 1e-8)
        align = d_theta.cos() * d_phi.cos()
        phase = torch.stack((d_theta, d_phi, d_speed, ratio, d_lon, align), dim=-1)

        e = torch.sigmoid(self.predictor(torch.cat((h[:, i], h[:, j], phase), dim=-1))).squeeze(-1)
        p = torch.stack((d_theta, d_phi, d_speed, ratio - 1, d_lon, align), dim=-1).abs()
        g = torch.sigmoid(p @ self.weights)
        adjacency = h.new_zeros(batch, nodes, nodes)
        adjacency[:, i, j] = (e * g).to(h.dtype)
        return adjacency + adjacency.transpose(1, 2)


class PhaseAwareProcessor(nn.Module):
    """Input columns to body features and phase adjacency."""

    def __init__(self, n_heads: int, feature_map: str, phase_edges: str) -> None:
        super().__init__()
        features = named_features if feature_map == "named" else positional_features
        self.columns = {body: list(features(body).values()) for body in BODIES}
        self.bodies = nn.ModuleDict({body: BodyProcessor(len(self.columns[body])) for body in BODIES})
        self.edges = PhaseEdges(computed=phase_edges == "computed")
        self.attention = nn.MultiheadAttention(C, n_heads, batch_first=True)
        self.scaler = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs x [B, S, F] -> features [B, S, N * C], phase adjacency [B, N, N]."""
        batch, steps, _ = x.shape
        h = torch.stack([self.bodies[body](x[:, :, columns]) for body, columns in self.columns.items()], dim=2)
        adjacency = self.edges(h[:, -1], x[:, -1])
        tokens = h.flatten(0, 1)  # [B * S, N, C]
        o = self.attention(tokens, tokens, tokens)[0].view_as(h)
        scale = 1 + (torch.log(adjacency + 1e-8) * self.scaler).mean(dim=-1)  # [B, N]
        features = o * scale[:, None, :, None]
        return features.reshape(batch, steps, -1), adjacency
