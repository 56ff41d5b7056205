"""Section 10: mixture decoder, blocks over the forecast days and a head for each parameter of the mixture."""

import pytest
import torch
from torch import Tensor, nn

from pgat_fast.model.forecast import Mixture
from pgat_fast.model.reference.embedding import sinusoidal_positions
from pgat_fast.model.reference.mixture import MixtureDecoder
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import Array, array, normal, randomize

WIDTH, TARGETS, COMPONENTS = 8, 2, 3


def decoder(n_heads: int = 2) -> MixtureDecoder:
    model = MixtureDecoder(WIDTH, n_heads, TARGETS, COMPONENTS, dropout=0.0)
    randomize(model)
    return model


def transformed(layer: nn.TransformerDecoderLayer, d: Array, graph: Array) -> Array:
    """Apply a pre-norm decoder block."""
    steps = len(d)
    causal_mask = np_triangle(steps)
    x = by_hand.layer_norm(layer.norm1, d)
    d = d + by_hand.attention(layer.self_attn, x, x, causal_mask)
    d = d + by_hand.attention(layer.multihead_attn, by_hand.layer_norm(layer.norm2, d), graph)
    hidden = by_hand.gelu(by_hand.linear(layer.linear1, by_hand.layer_norm(layer.norm3, d)))
    return d + by_hand.linear(layer.linear2, hidden)


def np_triangle(steps: int) -> Array:
    """Return a causal mask: -inf at later steps, 0 elsewhere."""
    return array(torch.full((steps, steps), float("-inf")).triu(diagonal=1))


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize("days", [1, 5])
def test_mixture_equals_the_formulas(days: int, n_heads: int) -> None:
    model = decoder(n_heads)
    states, graph = normal(2, days, WIDTH), normal(2, 7, WIDTH, seed=3)
    actual = model(states, graph)
    for b in range(2):
        d, graph_states = array(states[b] + sinusoidal_positions(days, WIDTH)), array(graph[b])
        for layer in model.layers:
            assert isinstance(layer, nn.TransformerDecoderLayer)
            d = transformed(layer, d, graph_states)
        d = by_hand.layer_norm(model.norm, d)
        shape = (days, TARGETS, COMPONENTS)
        by_hand.assert_equal(actual.means[b], by_hand.linear(model.means, d).reshape(shape))
        log_stds = by_hand.linear(model.log_stds, d).reshape(shape).clip(-10, 2)
        by_hand.assert_equal(actual.log_stds[b], log_stds)
        by_hand.assert_equal(actual.log_weights[b], by_hand.linear(model.log_weights, d))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_result_is_independent_of_torchs_execution_path(training: bool, gradients: bool) -> None:
    model, graph = decoder(), normal(2, 7, WIDTH)
    expected = model(normal(2, 5, WIDTH), graph)
    model.train(training)
    with torch.set_grad_enabled(gradients):
        actual = model(normal(2, 5, WIDTH), graph)
    for first, second in zip(actual, expected, strict=True):
        assert torch.allclose(first, second, rtol=0, atol=1e-12)  # rounding of float64


@pytest.mark.parametrize(("bias", "limit"), [(100.0, 2.0), (-100.0, -10.0)])
def test_log_stds_are_clamped(bias: float, limit: float) -> None:
    model = decoder()
    with torch.no_grad():
        model.log_stds.bias.fill_(bias)
    actual: Mixture = model(normal(2, 5, WIDTH), normal(2, 7, WIDTH))
    expected: Tensor = torch.full_like(actual.log_stds, limit)
    assert torch.equal(actual.log_stds, expected)
