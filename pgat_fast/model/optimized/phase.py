"""Section 1 with batched body networks (rewrites 1, 6 and 8), and edges without gathered pairs.

Bodies: attention over one key and the following layer `expand` are one affine map, composed once a step from weights of
at most ten columns. Bodies with fewer columns are padded with their own first column at weight 0, so that no other
column can affect them, not even a NaN. Every later layer of the 13 bodies is one batched product, and their GRUs are
one scan.

Edges: with the weight of the predictor's first layer split, W1 = [Wa, Wb, Wc],

    W1 [h_i ; h_j ; phase_ij] + b1 = (Wa h_i + b1) + Wb h_j + Wc phase_ij

This takes one product a body instead of one a pair; pairs are sums by broadcasting. All N * N pairs are computed and
the upper triangle is used: less work than gathering it and scattering its gradients, and without atomics.

The input, the normalised body features and the states of the GRUs are kept for the backward pass, which recomputes the
body networks and the attention between bodies.
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgat_fast.data.bodies import BODIES
from pgat_fast.data.bodies import BODY_CHANNELS as C
from pgat_fast.data.columns import feature_columns
from pgat_fast.model.numerics import at_least_float32, gate
from pgat_fast.model.optimized.fast_module import FastModule, recomputed, stack_parameters
from pgat_fast.model.reference.phase import BodyProcessor, PhaseAwareProcessor, PhaseEdges
from pgat_kernels.dispatch import wanted
from pgat_kernels.matmul_precision import no_autocast
from pgat_kernels.ops.affine import Affine, compose, single_key_attention
from pgat_kernels.ops.dropout import dropout
from pgat_kernels.ops.grouped import grouped_layer_norm, grouped_linear, pad_and_stack
from pgat_kernels.ops.gru import gru_bank


class Recurrence(nn.Module):
    """Holder of the parameters of a GRU, under the same names, for another implementation such as `gru_bank`.

    It replaces the `nn.GRU` because `torch.compile` refuses any graph that accesses one.
    """

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        for name, parameter in gru.named_parameters():
            self.register_parameter(name, parameter)


class FastPhaseAwareProcessor(FastModule, PhaseAwareProcessor):
    """Body features and phase adjacency, computed from the input columns."""

    padded_columns: Tensor
    """Columns of every body, padded with its first column to the widest body: int64 [N * widest]."""

    def __init__(self, n_heads: int, feature_map: str, phase_edges: str) -> None:
        super().__init__(n_heads, feature_map, phase_edges)
        for body in self._networks():
            body.add_module("gru", Recurrence(body.gru))
        body_columns = [feature_columns(body, feature_map) for body in BODIES]
        padded = [
            column for columns in body_columns for column in columns + columns[:1] * (max(self.widths) - len(columns))
        ]
        self.register_buffer("padded_columns", torch.tensor(padded), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, S, N * C] and phase adjacency [B, N, N] of inputs x [B, S, F]."""
        rate = self.rate(self._networks()[0].dropout)
        r = recomputed(
            partial(_body_networks, rate), x, self.padded_columns, self.seed(rate, x.device), *self._network_weights()
        )
        w_ih, w_hh, b_ih, b_hh = stack_parameters(body.gru for body in self._networks())
        kernels = wanted(self.execution.kernels, "gru_bank", r, w_hh.shape[-1])
        recurrent = gru_bank(r, w_ih, w_hh, b_ih, b_hh, self.product_dtype(r), kernels)
        with no_autocast(x.device):
            adjacency = _phase_adjacency(self.edges, r[:, -1] + recurrent[:, -1], x[:, -1])
            scale = 1 + (torch.log(adjacency + 1e-8) * self.scaler).mean(dim=-1)  # [B, N]
        between_bodies = partial(_between_bodies, self.attention.num_heads)
        features = recomputed(between_bodies, r, recurrent, scale, *self.attention.parameters())
        return features, adjacency

    def _networks(self) -> list[BodyProcessor]:
        return [body for body in self.bodies.values() if isinstance(body, BodyProcessor)]

    def _network_weights(self) -> tuple[Tensor, ...]:
        """Return weights and biases of attention + `expand`, `project`, `norm`, stacked over the N bodies."""
        bodies, widest = self._networks(), max(self.widths)

        def stacked(layers: Iterable[nn.Linear], outputs: int) -> Affine:
            weights, biases = zip(*((layer.weight, layer.bias) for layer in layers), strict=True)
            return Affine(pad_and_stack(weights, (outputs, widest)), pad_and_stack(biases, (outputs,)))

        with no_autocast(self.scaler.device):  # round only the composed weight
            attention = single_key_attention(
                stacked((body.attention.value for body in bodies), widest),
                stacked((body.attention.output for body in bodies), widest),
            )
            expand = compose(attention, stacked((body.expand for body in bodies), 2 * C))
        project = stack_parameters(body.project for body in bodies)
        norm = stack_parameters(body.norm for body in bodies)
        return *expand, *project, *norm


def _body_networks(
    rate: float,
    x: Tensor,
    columns: Tensor,
    seed: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    norm: Tensor,
    shift: Tensor,
) -> Tensor:
    """Return LayerNorm(W2 dropout(gelu(W1 x_columns + b1)) + b2) of every body: [B, S, F] -> [B, S, N, C].

    The LayerNorm and the result are at least float32.
    """
    bodies, _, widest = w1.shape
    inputs = x.flatten(0, 1).index_select(1, columns).view(-1, bodies, widest).transpose(0, 1)  # [N, B * S, widest]
    hidden = dropout(F.gelu(grouped_linear(inputs, w1, b1)), rate, seed, site=0)
    r = grouped_layer_norm(grouped_linear(hidden, w2, b2), norm, shift)
    return r.transpose(0, 1).reshape(*x.shape[:2], bodies, -1)


def _phase_adjacency(edges: PhaseEdges, h: Tensor, x: Tensor) -> Tensor:
    """Return the adjacency [B, N, N] in [0, 1) for body features h [B, N, C] and inputs x [B, F] of a timestep."""
    nodes = h.shape[1]
    if edges.quantities is None:
        angles, speed, distance = h.new_zeros(1, 3, nodes), h.new_zeros(1, nodes), h.new_zeros(1, nodes)
    else:
        angles, speed, distance = edges.quantities(at_least_float32(x))
    upper = torch.ones(nodes, nodes, dtype=torch.bool, device=h.device).triu(1)
    difference = angles[:, :, :, None] - angles[:, :, None]
    d_theta, d_phi, d_lon = torch.atan2(difference.sin(), difference.cos()).unbind(1)  # [B, N, N]
    d_speed = speed[:, :, None] - speed[:, None]
    ratio = distance[:, :, None] / torch.where(upper, distance[:, None] + 1e-8, 1.0)
    align = d_theta.cos() * d_phi.cos()
    phase = torch.stack((d_theta, d_phi, d_speed, ratio, d_lon, align), dim=-1)

    first, second, third = (layer for layer in edges.predictor if isinstance(layer, nn.Linear))
    of_i, of_j, of_phase = first.weight.to(h.dtype).split((C, C, phase.shape[-1]), dim=1)
    pairs = F.linear(h, of_i)[:, :, None] + F.linear(h, of_j)[:, None] + F.linear(phase, of_phase) + first.bias
    e = gate(third(F.gelu(second(F.gelu(pairs).to(second.weight.dtype))))).squeeze(-1)
    p = torch.stack((d_theta, d_phi, d_speed, ratio - 1, d_lon, align), dim=-1).abs()
    g = gate(p @ edges.weights.to(p.dtype))
    adjacency = (e * g).triu(1)
    return adjacency + adjacency.transpose(1, 2)


def _between_bodies(
    n_heads: int,
    r: Tensor,
    recurrent: Tensor,
    scale: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
) -> Tensor:
    """Return scale * MHA(r + recurrent) over the N bodies of a timestep: [B, S, N, C], scale [B, N] -> [B, S, N * C].

    The attention is float32 even with 16-bit products: torch's fused attention is slower in bfloat16 on a CPU.
    """
    tokens = (r + recurrent).flatten(0, 1).to(w_in.dtype)  # [B * S, N, C]
    qkv = at_least_float32(F.linear(tokens, w_in, b_in)).unflatten(2, (3, n_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B * S, H, N, C / H]
    with no_autocast(r.device):
        attended = F.scaled_dot_product_attention(q, k, v)
    o = F.linear(attended.transpose(1, 2).flatten(2).to(w_out.dtype), w_out, b_out).view_as(r)
    return (o * scale[:, None, :, None]).to(o.dtype).flatten(2)
