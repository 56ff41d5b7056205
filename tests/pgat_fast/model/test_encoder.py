"""Section 7: dynamic spatio-temporal encoder, compared sample by sample and node by node."""

import numpy as np
import pytest
import torch

from pgat_fast.model.reference.encoder import SpatioTemporalEncoder
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import Array, array, normal, randomize, uniform

NODES, WIDTH, LONGEST = 3, 8, 6


def encoder(n_heads: int = 2) -> SpatioTemporalEncoder:
    model = SpatioTemporalEncoder(WIDTH, n_heads, NODES, LONGEST, dropout=0.0)
    randomize(model)
    return model


def hops(model: SpatioTemporalEncoder, x: Array, adjacency: Array) -> Array:
    """Return the spatial convolutions of one timestep, x [N, D], adjacency [N, N], with powers of the transition."""
    transition = np.zeros((NODES, NODES))
    for i in range(NODES):
        row = [adjacency[i, j] + (i == j) for j in range(NODES)]
        degree = sum(row)
        transition[i] = [value / (1 if degree == 0 else degree) for value in row]
    hop_states = [np.linalg.matrix_power(transition, h) @ x for h in (1, 2, 3)]
    outputs = [
        by_hand.relu(by_hand.linear(layer, z))
        for layer, z in zip(model.spatial_convolutions, hop_states, strict=True)
        if isinstance(layer, torch.nn.Linear)
    ]
    return by_hand.layer_norm(model.spatial_norm, sum(outputs) / 3 + x)


def encoded(model: SpatioTemporalEncoder, e: Array, adjacency: Array) -> Array:
    """Encode one sample: e [S, D], adjacency [S, N, N] -> [S, N, D]."""
    steps = len(e)
    x0 = by_hand.linear(model.node_projection, e).reshape(steps, NODES, WIDTH)
    x = np.zeros_like(x0)
    temporal, spatial = np.zeros_like(x0), np.zeros_like(x0)
    for s, n in np.ndindex(steps, NODES):
        x[s, n] = x0[s, n] + array(model.spatial_positions)[n] + array(model.temporal_positions)[s]
    for n in range(NODES):
        outputs = [
            by_hand.relu(by_hand.convolution(layer, x[:, n]))
            for layer in model.temporal_convolutions
            if isinstance(layer, torch.nn.Conv1d)
        ]
        assert [layer.kernel_size for layer in model.temporal_convolutions] == [(1,), (3,), (5,), (7,)]
        temporal[:, n] = by_hand.layer_norm(model.temporal_norm, sum(outputs) / 4 + x[:, n])
    for s in range(steps):
        spatial[s] = hops(model, x[s], adjacency[s])
    interaction = np.zeros_like(x0)
    size = WIDTH // model.n_heads
    for s, n, h in np.ndindex(steps, NODES, model.n_heads):
        columns = slice(h * size, (h + 1) * size)
        interaction[s, n, columns] = temporal[s, n, columns] * (array(model.interaction)[h] @ spatial[s, n, columns])
    attended = by_hand.attention(model.attention, temporal.reshape(-1, WIDTH), spatial.reshape(-1, WIDTH))
    attended = attended.reshape(x0.shape)

    def gate(layer: torch.nn.Linear, first: Array) -> Array:
        return by_hand.sigmoid(by_hand.linear(layer, np.concatenate((first, x0), axis=-1)))

    z = gate(model.interaction_gate, interaction) * interaction
    z = z + gate(model.attention_gate, attended) * attended
    g = gate(model.fusion_gate, z)
    return by_hand.layer_norm(model.output_norm, g * z + (1 - g) * x0)


@pytest.mark.parametrize("n_heads", [1, 2, 8])
@pytest.mark.parametrize("steps", [1, 4, LONGEST])
def test_node_features_equal_the_formulas(steps: int, n_heads: int) -> None:
    model = encoder(n_heads)
    e, adjacency = normal(2, steps, WIDTH), 0.3 * uniform(2, steps, NODES, NODES)
    actual = model(e, adjacency)
    for b in range(2):
        by_hand.assert_equal(actual[b], encoded(model, array(e[b]), array(adjacency[b])))


def test_row_sum_of_zero_is_replaced_by_one() -> None:
    model = encoder()
    x = normal(1, 1, NODES, WIDTH)
    adjacency = torch.zeros(1, 1, NODES, NODES).double()
    adjacency[0, 0, 0] = torch.tensor([0.0, -0.5, -0.5])  # with the node itself: 1 - 0.5 - 0.5
    adjacency[0, 0, 1] = torch.tensor([0.5, -1.0, 0.25])
    by_hand.assert_equal(model.spatial(x, adjacency)[0, 0], hops(model, array(x[0, 0]), array(adjacency[0, 0])))


def test_negative_row_sums_are_used_as_divisors() -> None:
    model = encoder()
    x, adjacency = normal(1, 1, NODES, WIDTH), -0.9 * torch.ones(1, 1, NODES, NODES).double()
    by_hand.assert_equal(model.spatial(x, adjacency)[0, 0], hops(model, array(x[0, 0]), array(adjacency[0, 0])))


def test_row_sums_of_16_bit_adjacencies_are_float32() -> None:
    model = encoder()
    model.float()
    x = normal(1, 2, NODES, WIDTH).float()
    adjacency = uniform(1, 2, NODES, NODES).bfloat16()
    assert torch.equal(model.spatial(x, adjacency), model.spatial(x, adjacency.float()))
