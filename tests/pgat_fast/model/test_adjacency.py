"""Section 5: learned, normalised and mixed adjacencies."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from pgat_fast.model.reference.adjacency import (
    AdjacencyLearner,
    AdjacencyMixer,
    StochasticAdjacencyLearner,
    normalize,
)
from tests.pgat_fast.model import by_hand
from tests.pgat_fast.model.by_hand import Array, array, normal, randomize, uniform


def normalized(adjacency: Array) -> Array:
    """Return (A + I) / (row sum + 1e-8), entry by entry."""
    size = len(adjacency)
    result = np.zeros((size, size))
    for i in range(size):
        row = [adjacency[i, j] + (i == j) for j in range(size)]
        result[i] = [value / (sum(row) + 1e-8) for value in row]
    return result


def test_normalised_rows_sum_to_one() -> None:
    adjacency = 0.1 * uniform(2, 3, 5, 5)
    actual = normalize(adjacency)
    for index in np.ndindex(2, 3):
        by_hand.assert_equal(actual[index], normalized(array(adjacency[index])))
    assert torch.allclose(actual.sum(dim=-1), torch.ones(2, 3, 5).double(), atol=1e-7)  # the 1e-8 in the denominator


def test_row_sum_of_zero_gives_finite_values() -> None:
    adjacency = torch.tensor([[0.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.isfinite(normalize(adjacency)).all()
    by_hand.assert_equal(normalize(adjacency)[0], np.array([1e8, -5e7, -5e7]), 1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adjacencies_are_normalised_in_float32(dtype: torch.dtype) -> None:
    adjacency = uniform(4, 13, 13).to(dtype)
    assert normalize(adjacency).dtype == torch.float32
    assert torch.equal(normalize(adjacency), normalize(adjacency.float()))


@pytest.mark.parametrize("per_timestep", [False, True])
def test_mixer_equals_the_formula(per_timestep: bool) -> None:
    mixer = AdjacencyMixer(6)
    randomize(mixer)
    context = normal(2, 3 if per_timestep else 1, 6)
    phase, static, dynamic = 0.1 * uniform(2, 1, 4, 4), 0.1 * uniform(4, 4), 0.1 * uniform(2, 3, 4, 4, seed=5)
    actual = mixer(context, (phase, static, dynamic))
    assert actual.shape == (2, 3, 4, 4)
    for b, s in np.ndindex(2, 3):
        sample_context = array(context[b, s if per_timestep else 0])
        w = by_hand.softmax(by_hand.linear(mixer.output, by_hand.relu(by_hand.linear(mixer.hidden, sample_context))))
        mixed = w[0] * normalized(array(phase[b, 0])) + w[1] * normalized(array(static))
        by_hand.assert_equal(actual[b, s], mixed + w[2] * normalized(array(dynamic[b, s])))


def test_learned_adjacency_equals_the_formula() -> None:
    learner = AdjacencyLearner(6, nodes=3)
    randomize(learner)
    e = normal(2, 4, 6)
    actual, kl = learner(e)
    hidden = by_hand.gelu(by_hand.linear(learner.hidden, array(e)))
    by_hand.assert_equal(actual, np.tanh(by_hand.linear(learner.output, hidden)).reshape(2, 4, 3, 3))
    assert kl is None


def stochastic() -> StochasticAdjacencyLearner:
    learner = StochasticAdjacencyLearner(6, nodes=3)
    randomize(learner)
    return learner


def test_stochastic_learner_returns_unbounded_mean_in_evaluation() -> None:
    learner, e = stochastic(), 5 * normal(2, 4, 6)
    actual = learner(e)[0]
    by_hand.assert_equal(actual, by_hand.linear(learner.mean, array(e)).reshape(2, 4, 3, 3))
    assert actual.abs().max() > 1


def test_stochastic_learner_samples_its_distribution_in_training() -> None:
    learner, draws = stochastic(), 20_000
    learner.train()
    e = normal(1, 1, 6)
    torch.manual_seed(0)
    sample = array(learner(e.expand(1, draws, 6))[0])[0].reshape(draws, 9)
    mean = by_hand.linear(learner.mean, array(e))[0, 0]
    deviation = np.exp(by_hand.linear(learner.log_variance, array(e))[0, 0] / 2)
    z = (sample - mean) / deviation
    # Five standard errors: 1 for a mean, sqrt 2 for a variance, 1 for a correlation, each over the root of the draws.
    assert np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(draws)
    assert np.abs((z**2).mean(axis=0) - 1).max() < 5 * math.sqrt(2 / draws)
    assert np.abs(np.corrcoef(z, rowvar=False) - np.eye(9)).max() < 5 / math.sqrt(draws)
    # Fourth moment of a normal: 3, with standard error sqrt(96 / draws).
    assert np.abs((z**4).mean(axis=0) - 3).max() < 5 * math.sqrt(96 / draws)


@pytest.mark.parametrize("training", [False, True])
def test_divergence_is_summed_over_entries_and_averaged_over_timesteps(training: bool) -> None:
    learner, e = stochastic(), normal(2, 4, 6)
    learner.train(training)
    distribution = Normal(learner.mean(e), torch.exp(learner.log_variance(e) / 2))
    expected = kl_divergence(distribution, Normal(0.0, 1.0)).sum(dim=2).mean()
    assert torch.allclose(learner(e)[1], expected, rtol=1e-12)  # rounding of float64


def test_sample_has_gradients_to_both_heads() -> None:
    learner = stochastic()
    learner.train()
    learner(normal(2, 4, 6))[0].square().sum().backward()
    for parameter in learner.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()
