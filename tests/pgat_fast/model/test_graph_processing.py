"""Section 8: processing of the encoded history with the combined adjacency."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pgat_fast.model.reference.graph_processing import (
    GraphAttention,
    GraphAttentionBlock,
    PartitionedProcessing,
)
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import Array, array, normal, randomize, uniform

# --- 8a: partitioned ---


@pytest.mark.parametrize("targets", [1, 2, 4])
def test_targets_equal_the_formula(targets: int) -> None:
    nodes, share = 5, 3
    model = PartitionedProcessing(nodes * share, nodes, targets)
    randomize(model)
    encoded, adjacency = normal(2, 3, nodes * share), uniform(2, 3, nodes, nodes)
    actual = model(encoded, adjacency)
    for b, s in np.ndindex(2, 3):
        x, a = array(encoded[b, s]).reshape(nodes, share), array(adjacency[b, s])
        covariates, target_nodes = range(nodes - targets), range(nodes - targets, nodes)
        contexts = [
            by_hand.linear(model.covariate_interaction, sum(a[i, j] * x[j] for j in covariates)) for i in covariates
        ]
        context = sum(contexts) / len(contexts)
        expected = x.copy()
        for t in target_nodes:
            received = x[t] + sum(a[t, j] * x[j] for j in covariates) + sum(a[t, j] * x[j] for j in target_nodes)
            expected[t] = by_hand.mlp(model.target_fusion, np.concatenate((received, context)))
        by_hand.assert_equal(actual[b, s], expected.reshape(-1))


# --- 8b: attention ---

NODES, WIDTH = 4, 8


def block(threshold: float = 0.0, bias: bool = False, n_heads: int = 2) -> GraphAttentionBlock:
    layer = GraphAttentionBlock(WIDTH, n_heads, 0.0, threshold, bias)
    randomize(layer)
    return layer


def one_graph(layer: GraphAttentionBlock, x: Array, adjacency: Array) -> Array:
    scores_plus = np.zeros((NODES, NODES))
    for i, j in np.ndindex(NODES, NODES):
        if layer.adjacency_scale is not None:
            scores_plus[i, j] = array(layer.adjacency_scale)[0] * adjacency[i, j]
        if i != j and abs(adjacency[i, j]) <= layer.threshold:
            scores_plus[i, j] = -np.inf
    x = by_hand.layer_norm(layer.norm1, x + by_hand.attention(layer.attention, x, x, scores_plus))
    return by_hand.layer_norm(layer.norm2, x + by_hand.mlp(layer.feed_forward, x))


def sparse(*shape: int) -> Tensor:
    """Return an adjacency with about half of its entries 0, including some of the diagonal."""
    adjacency = uniform(*shape)
    return adjacency * (uniform(*shape, seed=8) > 0)


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_attention_equals_the_formula(threshold: float, bias: bool, n_heads: int) -> None:
    model = GraphAttention(WIDTH, n_heads, 2, 0.0, threshold, bias)
    randomize(model)
    nodes, adjacency = normal(2, 3, NODES, WIDTH), sparse(2, 3, NODES, NODES)
    actual = model(nodes, adjacency)
    for b, s in np.ndindex(2, 3):
        x = array(nodes[b, s])
        for layer in model.layers:
            assert isinstance(layer, GraphAttentionBlock)
            x = one_graph(layer, x, array(adjacency[b, s]))
        by_hand.assert_equal(actual[b, s], x)


@pytest.mark.parametrize(("value", "hidden"), [(0.25, True), (-0.25, True), (0.2500001, False), (-0.3, False)])
def test_edges_with_magnitude_at_most_the_threshold_are_hidden(value: float, hidden: bool) -> None:
    layer = block(threshold=0.25)
    x, adjacency = normal(1, NODES, WIDTH), torch.ones(1, NODES, NODES).double()
    adjacency[0, 0, 2] = value
    before = layer(x, adjacency)[0, 0]
    x[0, 2] += 1
    assert torch.equal(before, layer(x, adjacency)[0, 0]) == hidden


@pytest.mark.parametrize("bias", [False, True])
def test_node_without_neighbours_attends_to_itself(bias: bool) -> None:
    layer = block(bias=bias)
    x = normal(3, NODES, WIDTH)
    single = x.reshape(-1, 1, WIDTH)
    single_output = layer(single, torch.zeros(3 * NODES, 1, 1).double())
    actual = layer(x, torch.zeros(3, NODES, NODES).double())
    assert torch.allclose(actual.reshape(-1, 1, WIDTH), single_output, rtol=0, atol=1e-12)  # rounding of float64
    value = layer.attention.in_proj_weight[2 * WIDTH :], layer.attention.in_proj_bias[2 * WIDTH :]
    attended = layer.attention.out_proj(torch.nn.functional.linear(x, *value))
    expected = layer.norm1(x + attended)
    expected = layer.norm2(expected + layer.feed_forward(expected))
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)  # rounding of float64


def test_bias_has_gradients_to_visible_edges_and_scale() -> None:
    layer = block(threshold=0.2, bias=True)
    adjacency = uniform(2, NODES, NODES).requires_grad_()
    layer(normal(2, NODES, WIDTH), adjacency).square().sum().backward()
    assert adjacency.grad is not None
    diagonal = torch.eye(NODES, dtype=torch.bool)
    visible = (adjacency.abs() > 0.2) | diagonal
    assert 0 < visible.sum() < visible.numel()
    assert torch.equal(adjacency.grad != 0, visible)
    assert layer.adjacency_scale is not None
    assert layer.adjacency_scale.grad is not None
    assert layer.adjacency_scale.grad.item() != 0


def test_without_bias_only_the_sparsity_pattern_is_used() -> None:
    layer = block()
    x, adjacency = normal(1, NODES, WIDTH), sparse(1, NODES, NODES)
    assert torch.equal(layer(x, adjacency), layer(x, 0.1 * adjacency.sign()))
    assert layer.adjacency_scale is None


@pytest.mark.parametrize("what", ["nodes", "adjacency"])
def test_timesteps_and_samples_are_independent(what: str) -> None:
    model = GraphAttention(WIDTH, 2, 2, 0.0, 0.0, bias=True)
    randomize(model)
    inputs = {"nodes": normal(2, 3, NODES, WIDTH), "adjacency": uniform(2, 3, NODES, NODES)}
    before = model(**inputs)
    inputs[what][1, 2, 0, 1] += 0.5
    changed = (model(**inputs) - before).abs().amax(dim=(2, 3)) > 1e-12  # rounding of float64
    assert changed.nonzero().tolist() == [[1, 2]]
