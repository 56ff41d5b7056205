"""Sections 3 and 4: body nodes with their aspects, and fusion of the bodies into the market state."""

import math

import numpy as np
import pytest

from pgat_fast.data.bodies import BODIES
from pgat_fast.model.reference.body_nodes import BodyFusion, BodyNodes, astrological_adjacency, fusion_width
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import array, normal, randomize

STRENGTHS = """
sun-jupiter .9, moon-venus .8, mercury-uranus .7, mars-saturn -.6, sun-pluto -.5, jupiter-neptune -.4,
north_node-south_node -.8, sun-saturn -.7, venus-jupiter .9, mercury-mars .6, moon-mercury .5, venus-mars .4
"""
"""Static strengths as listed in the architecture."""


def test_static_adjacency_has_only_the_listed_strengths() -> None:
    expected = np.eye(13)
    for entry in STRENGTHS.replace("\n", " ").split(","):
        pair, strength = entry.split()
        i, j = (BODIES.index(body) for body in pair.split("-"))
        expected[i, j] = expected[j, i] = float(strength)
    by_hand.assert_equal(astrological_adjacency(), expected, 1e-7)  # float32
    assert np.count_nonzero(expected) == 13 + 2 * 12


def test_aspects_and_body_features_equal_the_formulas() -> None:
    nodes = BodyNodes(8)
    randomize(nodes)
    e = normal(2, 3, 8)
    adjacency, features = nodes(e)
    assert adjacency.shape == (2, 3, 13, 13)
    embeddings = array(nodes.embeddings)
    for b, s in np.ndindex(2, 3):
        state = array(e[b, s])
        u = embeddings + by_hand.mlp(nodes.market, state)
        expected = np.eye(13)
        for i in range(13):
            for j in range(i + 1, 13):
                strength = by_hand.sigmoid(by_hand.mlp(nodes.aspects, np.concatenate((u[i], u[j]))))[0]
                expected[i, j] = expected[j, i] = strength
        by_hand.assert_equal(adjacency[b, s], expected)
        transforms = [nodes.transforms[body] for body in BODIES]
        expected_features = [by_hand.mlp(net, embeddings[k] + state) for k, net in enumerate(transforms)]
        by_hand.assert_equal(features[b, s], np.stack(expected_features))


@pytest.mark.parametrize("n_heads", [1, 2, 3, 8, 16, 20, 100])
@pytest.mark.parametrize("width", [13, 26, 60, 64, 208])
def test_fusion_width_is_rounded_up_to_a_multiple_of_the_heads(width: int, n_heads: int) -> None:
    target_width = max(n_heads, min(width, 64))
    assert fusion_width(width, n_heads) == math.ceil(target_width / n_heads) * n_heads


@pytest.mark.parametrize(("width", "n_heads"), [(6, 2), (6, 4), (70, 5)])
def test_fusion_equals_the_formula(width: int, n_heads: int) -> None:
    fusion = BodyFusion(width, n_heads, dropout=0.0)
    randomize(fusion)
    assert fusion.query.out_features == {6: {2: 6, 4: 8}, 70: {5: 65}}[width][n_heads]
    e, bodies = normal(2, 3, width), normal(2, 3, 13, width, seed=4)
    actual = fusion(e, bodies)
    for b, s in np.ndindex(2, 3):
        state, body_features = array(e[b, s]), array(bodies[b, s])
        key, value = by_hand.linear(fusion.key, body_features), by_hand.linear(fusion.value, body_features)
        query = by_hand.linear(fusion.query, state[None])
        f = by_hand.linear(fusion.output, attention_to(fusion, query, key, value))[0]
        g = by_hand.sigmoid(by_hand.mlp(fusion.gate, np.concatenate((state, f))))
        by_hand.assert_equal(actual[b, s], state + g * f)


def attention_to(fusion: BodyFusion, query: by_hand.Array, key: by_hand.Array, value: by_hand.Array) -> by_hand.Array:
    """Apply attention with values different from the keys to one query, head by head."""
    weight, bias = array(fusion.attention.in_proj_weight), array(fusion.attention.in_proj_bias)
    inner, heads = query.shape[1], fusion.attention.num_heads
    q = weight[:inner] @ query[0] + bias[:inner]
    k = key @ weight[inner : 2 * inner].T + bias[inner : 2 * inner]
    v = value @ weight[2 * inner :].T + bias[2 * inner :]
    head_outputs = []
    for columns in np.split(np.arange(inner), heads):
        weights = by_hand.softmax(k[:, columns] @ q[columns] / math.sqrt(inner // heads))
        head_outputs.append(weights @ v[:, columns])
    return by_hand.linear(fusion.attention.out_proj, np.concatenate(head_outputs)[None])
