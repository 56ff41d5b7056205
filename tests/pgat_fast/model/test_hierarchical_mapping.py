"""Section 10: hierarchical mapping, which adds a summary of the history to every state."""

import math

import numpy as np
import pytest
from torch import nn

from pgat_fast.model.reference.hierarchical_mapping import HierarchicalMapping
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import Array, array, normal, randomize

NODES, WIDTH = 4, 8


def mapping() -> HierarchicalMapping:
    model = HierarchicalMapping(WIDTH, 2, NODES)
    randomize(model)
    return model


def pooled(x: Array) -> Array:
    """Pool [S, D] to [N, D]: means of N overlapping ranges, or interpolation between steps if S < N."""
    steps = len(x)
    rows = []
    for n in range(NODES):
        if steps >= NODES:
            rows.append(x[math.floor(n * steps / NODES) : math.ceil((n + 1) * steps / NODES)].mean(axis=0))
        else:  # the middle of the n-th of N equal parts; steps have their middles at 0, 1, ...
            place = min(max((n + 0.5) * steps / NODES - 0.5, 0), steps - 1)
            low = math.floor(place)
            high = min(low + 1, steps - 1)
            rows.append((low + 1 - place) * x[low] + (place - low) * x[high])
    return np.stack(rows)


def transformed(layer: nn.TransformerEncoderLayer, x: Array) -> Array:
    x = by_hand.layer_norm(layer.norm1, x + by_hand.attention(layer.self_attn, x, x))
    hidden = by_hand.relu(by_hand.linear(layer.linear1, x))
    return by_hand.layer_norm(layer.norm2, x + by_hand.linear(layer.linear2, hidden))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8])
def test_summary_equals_the_formula(steps: int) -> None:
    model = mapping()
    e = normal(2, steps, WIDTH)
    summary, actual = model.map_nodes(e), model(e)
    for b in range(2):
        state = array(e[b])
        x = by_hand.relu(by_hand.layer_norm(model.norm, by_hand.convolution(model.convolution, state) + state))
        for layer in model.layers:
            assert isinstance(layer, nn.TransformerEncoderLayer)
            x = transformed(layer, x)
        nodes = by_hand.linear(model.node_projection, pooled(x))
        by_hand.assert_equal(summary[b], nodes)
        by_hand.assert_equal(actual[b], state + by_hand.linear(model.projection, nodes.reshape(-1)))
