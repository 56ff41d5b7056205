"""Distribution functions, quantiles and scores of mixtures agree with independent implementations."""

import json
import math
import warnings
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgat_fast.evaluation.probabilistic import (
    day_nll,
    interval_coverage,
    marginal_nll,
    mixture_cdf,
    mixture_crps,
    mixture_quantile,
    mixture_report,
)
from pgat_fast.evaluation.split_forecasts import MixtureArrays, mixture_arrays
from pgat_fast.model.forecast import Mixture, mixture_nll

LEVELS = (0.5, 0.8, 0.95)
STANDARD = NormalDist()


def one(mean: float, std: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a normal distribution as a mixture of one component."""
    return np.array([mean]), np.array([std]), np.array([1.0])


def three() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return three components with gaps between them."""
    return np.array([-4.0, 0.5, 3.0]), np.array([0.3, 1.2, 0.05]), np.array([0.2, 0.5, 0.3])


def random_mixture(windows: int = 5, days: int = 3, targets: int = 2, components: int = 3) -> Mixture:
    torch.manual_seed(3)
    shape = windows, days, targets, components
    return Mixture(
        means=torch.randn(shape, dtype=torch.float64),
        log_stds=0.5 * torch.randn(shape, dtype=torch.float64),
        log_weights=torch.randn(windows, days, components, dtype=torch.float64),
    )


def arrays(mixture: Mixture) -> MixtureArrays:
    numpy_mixture = mixture_arrays([mixture])
    assert numpy_mixture is not None
    return numpy_mixture


@pytest.mark.parametrize("y", [-3.0, 0.0, 0.7, 5.0])
def test_single_component_equals_normal_distribution(y: float) -> None:
    mean, std = 0.4, 1.5
    normal, parts = NormalDist(mean, std), one(mean, std)
    z = (y - mean) / std
    # Gneiting & Raftery, Strictly proper scoring rules, 2007, equation 5.
    crps = std * (z * (2 * STANDARD.cdf(z) - 1) + 2 * STANDARD.pdf(z) - 1 / math.sqrt(math.pi))
    assert mixture_cdf(np.array(y), *parts) == pytest.approx(normal.cdf(y), rel=1e-12)
    assert mixture_crps(np.array(y), *parts) == pytest.approx(crps, rel=1e-12)
    for probability in (0.025, 0.5, 0.9):
        assert mixture_quantile(probability, *parts) == pytest.approx(normal.inv_cdf(probability), abs=1e-12)


@pytest.mark.parametrize("y", [-5.0, -1.0, 2.9, 3.0, 8.0])
def test_crps_equals_integral_of_squared_cdf_difference(y: float) -> None:
    parts = three()
    below, above = np.linspace(-20, y, 400_001), np.linspace(y, 20, 400_001)
    integral = np.trapezoid(mixture_cdf(below, *parts) ** 2, below)
    integral += np.trapezoid((1 - mixture_cdf(above, *parts)) ** 2, above)
    # Trapezoidal rule with steps of 1e-4; the narrowest part of the curve is 0.05 wide.
    assert mixture_crps(np.array(y), *parts) == pytest.approx(integral, rel=1e-6)


def test_crps_of_vanishing_std_equals_absolute_error() -> None:
    # The difference is of the order of the standard deviation.
    assert mixture_crps(np.array(2.0), *one(-1.0, 1e-9)) == pytest.approx(3.0, abs=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-10, 10), st.floats(0.01, 5), st.floats(0.01, 1)),
        min_size=1, max_size=5,
    ),
    st.floats(0.001, 0.999),
)  # fmt: skip
def test_quantile_inverts_cdf(components: list[tuple[float, float, float]], probability: float) -> None:
    means, stds, weights = (np.array(values) for values in zip(*components, strict=True))
    weights = weights / weights.sum()
    quantile = mixture_quantile(probability, means, stds, weights)
    # Density of up to 40 times the rounding of numbers up to 30.
    assert mixture_cdf(quantile, means, stds, weights) == pytest.approx(probability, abs=1e-12)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, math.nan])
def test_quantile_rejects_invalid_probability(probability: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        mixture_quantile(probability, *three())


@pytest.mark.parametrize("mode", ["independent", "joint"])
def test_day_nll_equals_mixture_loss(mode: str) -> None:
    mixture, truth = random_mixture(), torch.randn(5, 3, 2, dtype=torch.float64)
    nll = day_nll(arrays(mixture), truth.numpy(), mode)
    assert nll.shape == (5, 3)
    # The same float64 sums in another order.
    assert nll.mean() == pytest.approx(mixture_nll(mixture, truth, mode).item(), rel=1e-12)


def test_independent_day_nll_is_sum_of_marginal_nlls() -> None:
    mixture, truth = arrays(random_mixture()), np.random.default_rng(0).normal(size=(5, 3, 2))
    np.testing.assert_allclose(marginal_nll(mixture, truth).sum(axis=-1), day_nll(mixture, truth, "independent"))
    assert np.abs(day_nll(mixture, truth, "joint") - day_nll(mixture, truth, "independent")).max() > 0.01


def test_unknown_mode_is_rejected() -> None:
    with pytest.raises(ValueError, match="'shared'"):
        day_nll(arrays(random_mixture()), np.zeros((5, 3, 2)), "shared")


def test_coverage_matches_hand_count() -> None:
    # Standard normals: the central intervals end at 0.674, 1.282 and 1.960.
    truth = np.array([0.0, 0.67, -0.68, 1.28, -1.29, 1.95, 1.97, -9.0]).reshape(8, 1, 1)
    mixture = MixtureArrays(np.zeros((8, 1, 1, 1)), np.ones((8, 1, 1, 1)), np.ones((8, 1, 1)))
    assert interval_coverage(mixture, truth, LEVELS) == [2 / 8, 4 / 8, 6 / 8]


def test_coverage_of_samples_from_mixture_equals_levels() -> None:
    means, stds, weights = three()
    rng = np.random.default_rng(1)
    component = rng.choice(3, size=20_000, p=weights)
    truth = rng.normal(means[component], stds[component]).reshape(-1, 1, 1)
    shape = (len(truth), 1, 1, 3)
    mixture = MixtureArrays(
        np.broadcast_to(means, shape), np.broadcast_to(stds, shape), np.broadcast_to(weights, (len(truth), 1, 3))
    )
    # Four standard errors of a share of 20,000.
    for level, share in zip(LEVELS, interval_coverage(mixture, truth, LEVELS), strict=True):
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 20_000))


def test_report_agrees_overall_by_target_and_by_horizon() -> None:
    mixture, truth = arrays(random_mixture()), np.random.default_rng(0).normal(size=(5, 3, 2))
    report = mixture_report(mixture, truth, "joint", ["a", "b"], LEVELS)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report["coverage"]) == {"50", "80", "95"}
    for score in ("nll", "crps"):
        assert len(report[score]["by_horizon"]) == 3
        assert np.mean(report[score]["by_horizon"]) == pytest.approx(report[score]["overall"], rel=1e-12)
    assert np.mean(list(report["crps"]["by_target"].values())) == pytest.approx(report["crps"]["overall"], rel=1e-12)
    weights = mixture.weights[:, :, None, :]
    crps = mixture_crps(truth[..., 1:], mixture.means[:, :, 1:], mixture.stds[:, :, 1:], weights)
    assert report["crps"]["by_target"]["b"] == pytest.approx(crps.mean(), rel=1e-12)


@pytest.mark.parametrize("far", [1e6, 3e38])
def test_truths_near_float32_maximum_do_not_overflow(far: float) -> None:
    # The narrowest component that a model can produce, and a weight that underflowed to 0.
    mixture = MixtureArrays(
        np.array([[[[0.0, -far]]]]), np.array([[[[math.exp(-10), math.exp(2)]]]]), np.array([[[1.0, 0.0]]])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = mixture_report(mixture, np.array([[[far]]]), "joint", ["a"], LEVELS)
    assert report["crps"]["overall"] == pytest.approx(far)
    assert report["nll"]["overall"] == pytest.approx(0.5 * (far * math.exp(10)) ** 2)
    assert report["coverage"] == {"50": 0.0, "80": 0.0, "95": 0.0}


def test_non_finite_scores_are_none() -> None:
    mixture = arrays(random_mixture())
    mixture.means[0, 0, 0, 0] = math.nan
    report = mixture_report(mixture, np.zeros((5, 3, 2)), "independent", ["a", "b"], LEVELS)
    assert report["nll"]["overall"] is None
    assert report["crps"]["by_target"]["a"] is None
    assert report["crps"]["by_target"]["b"] is not None
    assert report["crps"]["by_horizon"][0] is None
    assert set(report["coverage"].values()) == {None}
