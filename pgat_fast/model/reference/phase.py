"""Section 1 of docs/model.md: phase-aware processor, which maps input columns to body features and phase adjacency."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_fast.data.bodies import BODIES
from pgat_fast.data.bodies import BODY_CHANNELS as C
from pgat_fast.data.columns import feature_columns, named_features
from pgat_fast.model.numerics import at_least_float32, gate
from pgat_fast.model.reference.attention import SingleKeyAttention


def body_pairs(device: torch.device) -> Tensor:
    """Return the 78 pairs i < j of bodies, int64 [2, 78]."""
    return torch.triu_indices(len(BODIES), len(BODIES), offset=1, device=device)


class BodyProcessor(nn.Module):
    """Features of one body from its columns: attention over one key, feed-forward, recurrence along time."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.attention = SingleKeyAttention(features)
        self.expand = nn.Linear(features, 2 * C)
        self.project = nn.Linear(2 * C, C)
        self.norm = nn.LayerNorm(C)
        self.gru = nn.GRU(C, C, batch_first=True)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, S, C] of columns [B, S, n_b]."""
        z = self.attention(x)
        r = self.norm(self.project(self.dropout(F.gelu(self.expand(z)))))
        recurrent, _ = self.gru(r)
        return r + recurrent


def angle_columns(known: dict[str, int], prefix: str) -> tuple[int, int]:
    """Return the sine and cosine columns of an angle; if missing, those of the longitude (sidereal, else tropical)."""
    existing_prefix = next(p for p in (prefix, "", "ecliptic_") if f"{p}sin" in known)
    return known[f"{existing_prefix}sin"], known[f"{existing_prefix}cos"]


class PhaseQuantities(nn.Module):
    """Angles, speeds and distances of every body, read from the input columns by name.

    Angles are atan2(sin, cos) in radians. Missing quantities are replaced by the angle of the longitude, speed 0 and
    distance 1.
    """

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        column_indices = [named_features(body) for body in BODIES]
        angles = [
            [angle_columns(indices, prefix) for indices in column_indices] for prefix in ("", "sign_", "ecliptic_")
        ]
        self.register_buffer("index", torch.tensor(angles), persistent=False)  # [3, N, (sin, cos)]
        for quantity in ("speed", "distance"):
            body_indices = [i for i, k in enumerate(column_indices) if quantity in k]
            self.register_buffer(f"{quantity}_bodies", torch.tensor(body_indices), persistent=False)
            columns = [column_indices[i][quantity] for i in body_indices]
            self.register_buffer(f"{quantity}_columns", torch.tensor(columns), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return angles [B, 3 (longitude, sign, ecliptic), N] in radians, speeds and distances [B, N] of x [B, F]."""
        sin, cos = x[:, self.index].unbind(-1)
        speed = x.new_zeros(x.shape[0], len(BODIES))
        speed = speed.index_copy(1, self.get_buffer("speed_bodies"), x[:, self.get_buffer("speed_columns")])
        distance = x.new_ones(x.shape[0], len(BODIES))
        distance = distance.index_copy(1, self.get_buffer("distance_bodies"), x[:, self.get_buffer("distance_columns")])
        return torch.atan2(sin, cos), speed, distance


class PhaseEdges(nn.Module):
    """Phase adjacency of the last timestep, computed from body features and phase differences.

    Speeds and distances are standardised, as in the model's inputs, so ratios of two distances have outliers.
    """

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
        """Return the adjacency [B, N, N] in [0, 1) for body features h [B, N, C] and inputs x [B, F] of a timestep."""
        batch, nodes, _ = h.shape
        if self.quantities is None:
            promoted = at_least_float32(h)  # in 16 bits the 1e-8 below would be 0
            angles, speed, distance = (promoted.new_zeros(batch, *shape) for shape in ((3, nodes), (nodes,), (nodes,)))
        else:
            angles, speed, distance = self.quantities(x)
        i, j = body_pairs(h.device)
        difference = angles[:, :, i] - angles[:, :, j]
        d_theta, d_phi, d_lon = torch.atan2(difference.sin(), difference.cos()).unbind(1)
        d_speed = speed[:, i] - speed[:, j]
        ratio = distance[:, i] / (distance[:, j] + 1e-8)
        align = d_theta.cos() * d_phi.cos()
        phase = torch.stack((d_theta, d_phi, d_speed, ratio, d_lon, align), dim=-1)

        e = gate(self.predictor(torch.cat((h[:, i], h[:, j], phase.to(h.dtype)), dim=-1))).squeeze(-1)
        p = torch.stack((d_theta, d_phi, d_speed, ratio - 1, d_lon, align), dim=-1).abs()
        g = gate(p @ self.weights.to(p.dtype))
        adjacency = h.new_zeros(batch, nodes, nodes)
        adjacency[:, i, j] = (e * g).to(h.dtype)
        return adjacency + adjacency.transpose(1, 2)


class PhaseAwareProcessor(nn.Module):
    """Body features and phase adjacency, computed from the input columns."""

    columns: Tensor

    def __init__(self, n_heads: int, feature_map: str, phase_edges: str) -> None:
        super().__init__()
        columns = [feature_columns(body, feature_map) for body in BODIES]
        self.widths = [len(body_columns) for body_columns in columns]
        self.register_buffer(
            "columns", torch.tensor([column for body_columns in columns for column in body_columns]), persistent=False
        )
        self.bodies = nn.ModuleDict(
            {body: BodyProcessor(width) for body, width in zip(BODIES, self.widths, strict=True)}
        )
        self.edges = PhaseEdges(computed=phase_edges == "computed")
        self.attention = nn.MultiheadAttention(C, n_heads, batch_first=True)
        self.scaler = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, S, N * C] and phase adjacency [B, N, N] of inputs x [B, S, F]."""
        batch, steps, _ = x.shape
        body_inputs = x.index_select(2, self.columns).split(self.widths, dim=2)
        h = torch.stack([body(inputs) for body, inputs in zip(self.bodies.values(), body_inputs, strict=True)], dim=2)
        adjacency = self.edges(h[:, -1], x[:, -1])
        tokens = h.flatten(0, 1)  # [B * S, N, C]
        o = self.attention(tokens, tokens, tokens)[0].view_as(h)
        scale = 1 + (torch.log(at_least_float32(adjacency) + 1e-8) * self.scaler).mean(dim=-1)  # [B, N]
        features = (o * scale[:, None, :, None]).to(o.dtype)
        return features.reshape(batch, steps, -1), adjacency
