"""Section 6a: batched combiner, self-attention over all edges of a timestep."""

import numpy as np
import pytest

from pgat_fast.model.reference.combiner_batched import BatchedCombiner, BatchedFusionBlock
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import array, combiner_inputs, randomize

NODES, WIDTH = 3, 8


def combiner(n_heads: int = 2, layers: int = 2) -> BatchedCombiner:
    model = BatchedCombiner(WIDTH, n_heads, layers, dropout=0.0)
    randomize(model)
    return model


@pytest.mark.parametrize(("n_heads", "layers"), [(1, 1), (2, 2), (4, 3)])
def test_combined_adjacency_equals_the_formulas(n_heads: int, layers: int) -> None:
    model = combiner(n_heads, layers)
    adjacencies, context = combiner_inputs(NODES, WIDTH)
    actual = model(adjacencies, context)
    for b, s in np.ndindex(2, 4):
        values = [array(a[b, s]) for a in adjacencies]
        edges = [[a[i, j] for a in values] for i in range(NODES) for j in range(NODES)]
        t = by_hand.linear(model.edge_projection, np.array(edges))
        for layer in model.layers:
            assert isinstance(layer, BatchedFusionBlock)
            t = by_hand.layer_norm(layer.norm1, t + by_hand.attention(layer.attention, t, t))
            t = by_hand.layer_norm(layer.norm2, t + by_hand.mlp(layer.feed_forward, t))
        expected = np.tanh(by_hand.mlp(model.output, t)).reshape(NODES, NODES)
        by_hand.assert_equal(actual[b, s], expected)
    assert actual.abs().max() < 1
