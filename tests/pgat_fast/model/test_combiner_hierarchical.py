"""Section 6b: hierarchical combiner, attention over edges and kinds of the same source body and timestep."""

import numpy as np
import pytest

from pgat_fast.model.reference.combiner_hierarchical import (
    HierarchicalCombiner,
    HierarchicalFusionBlock,
    PairInteraction,
)
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import Array, array, combiner_inputs, randomize

NODES, WIDTH = 3, 8
KINDS = ("astronomical", "learned", "attention")
PAIRS = {"astro_learned": (0, 1), "astro_attention": (0, 2), "learned_attention": (1, 2)}


def combiner(n_heads: int = 2, layers: int = 2) -> HierarchicalCombiner:
    model = HierarchicalCombiner(WIDTH, n_heads, layers, dropout=0.0)
    randomize(model)
    return model


def block(layer: HierarchicalFusionBlock, t: Array, context: Array) -> Array:
    """Apply a block to one group of tokens [3 N, D] with its context [D]."""
    t = by_hand.layer_norm(layer.norm1, t + by_hand.attention(layer.attention, t, t))
    shared = by_hand.linear(layer.context_attention.output, by_hand.linear(layer.context_attention.value, context))
    t = by_hand.layer_norm(layer.norm2, t + shared)
    return by_hand.layer_norm(layer.norm3, t + by_hand.mlp(layer.feed_forward, t))


def combined(model: HierarchicalCombiner, values: list[Array], context: Array) -> Array:
    """Combine three adjacencies [N, N] of one timestep with context [D] to one adjacency, edge by edge."""
    tokens: dict[tuple[int, int, int], Array] = {}
    for source in range(NODES):
        edges = [(kind, target) for kind in range(3) for target in range(NODES)]
        group = np.stack([by_hand.mlp(model.edge_transforms[KINDS[k]], values[k][source, [j]]) for k, j in edges])
        for layer in model.layers:
            assert isinstance(layer, HierarchicalFusionBlock)
            group = block(layer, group, context)
        tokens |= {(kind, source, target): group[n] for n, (kind, target) in enumerate(edges)}
    result = np.zeros((NODES, NODES))
    for i, j in np.ndindex(NODES, NODES):
        edge_tokens = np.stack([tokens[kind, i, j] for kind in range(3)])
        y = by_hand.attention(model.edge_attention, context[None], edge_tokens)[0]
        for name, (first, second) in PAIRS.items():
            interaction = model.interactions[name]
            assert isinstance(interaction, PairInteraction)
            interaction_values = by_hand.mlp(interaction.values, np.array([values[first][i, j], values[second][i, j]]))
            y = y + interaction_values * by_hand.sigmoid(by_hand.linear(interaction.modulation, context))
        y = y * by_hand.sigmoid(by_hand.mlp(model.calibration, np.concatenate((y, context))))
        result[i, j] = np.tanh(by_hand.mlp(model.output, y))[0]
    return result


@pytest.mark.parametrize(("n_heads", "layers"), [(1, 1), (2, 2), (4, 1)])
def test_combined_adjacency_equals_the_formulas(n_heads: int, layers: int) -> None:
    model = combiner(n_heads, layers)
    adjacencies, context = combiner_inputs(NODES, WIDTH)
    actual = model(adjacencies, context)
    for b, s in np.ndindex(2, 4):
        expected = combined(model, [array(a[b, s]) for a in adjacencies], array(context[b, s]))
        by_hand.assert_equal(actual[b, s], expected)
    assert actual.abs().max() < 1
