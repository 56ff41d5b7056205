"""Scores of a mixture of normal distributions as a probabilistic forecast of each target of each day.

Except for the likelihood, the scores are those of the marginal distribution of each window, day and target,
sum_k w_k N(mean_k, std_k), whether or not the targets of a day share the component. Arrays are NumPy float64: means
and stds (above 0) are [..., K], weights are [..., K] and sum to 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgat_fast.evaluation.metrics import finite
from pgat_fast.evaluation.split_forecasts import MixtureArrays

Array = NDArray[np.float64]

_BISECTIONS = 80
"""Halvings, which shrink about 100 standard deviations to 1e-22 of one, below the rounding of the interval's ends."""


def normal_cdf(z: Array) -> Array:
    """Compute the standard normal distribution function."""
    return torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(z))).numpy()


def mixture_cdf(y: Array, means: Array, stds: Array, weights: Array) -> Array:
    """Compute P(Y <= y), [...], for y [...] and means, stds and weights [..., K]."""
    return np.sum(weights * normal_cdf((y[..., None] - means) / stds), axis=-1)


def mixture_quantile(probability: float, means: Array, stds: Array, weights: Array) -> Array:
    """Compute the quantile of Y at `probability`, [...], by bisection of the distribution function.

    Raises ValueError for a probability that is not strictly between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}, not between 0 and 1")
    # The quantile of a mixture is between the smallest and the largest quantile of its components.
    z = float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
    low, high = np.min(means + z * stds, axis=-1), np.max(means + z * stds, axis=-1)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = mixture_cdf(middle, means, stds, weights) < probability
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return 0.5 * (low + high)


def mixture_crps(y: Array, means: Array, stds: Array, weights: Array) -> Array:
    """Compute the continuous ranked probability score, [...], in the units of y.

    0 is perfect. For a point forecast, the score is |y - forecast|.

    Closed form: sum_k w_k A(y - m_k, s_k) - 1/2 sum_jk w_j w_k A(m_j - m_k, sqrt(s_j^2 + s_k^2)), with
    A(m, s) = 2 s phi(m / s) + m (2 Phi(m / s) - 1) (Grimit, Gneiting, Berrocal & Johnson, The continuous ranked
    probability score for circular variables, 2006).
    """
    error = np.sum(weights * _expected_distance(y[..., None] - means, stds), axis=-1)
    mean_differences = means[..., :, None] - means[..., None, :]
    difference_stds = np.hypot(stds[..., :, None], stds[..., None, :])
    pairs = weights[..., :, None] * weights[..., None, :]
    return error - 0.5 * np.sum(pairs * _expected_distance(mean_differences, difference_stds), axis=(-2, -1))


def _expected_distance(mean: Array, std: Array) -> Array:
    """Compute E|X| of a normal X."""
    z = mean / std
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return 2 * std * density + mean * (2 * normal_cdf(z) - 1)


def day_nll(mixture: MixtureArrays, truth: Array, mode: str) -> Array:
    """Compute the joint negative log-likelihood of the targets `truth` [W, P, C] of each day, in nats, [W, P].

    Its mean is `model.forecast.mixture_nll`. With `mode` `joint`, the targets of a day share the component; with
    `independent`, each draws its own.

    Raises ValueError for another mode.
    """
    if mode == "independent":
        return marginal_nll(mixture, truth).sum(axis=-1)
    if mode == "joint":
        return -np.logaddexp.reduce(_log_weights(mixture) + _log_densities(mixture, truth).sum(axis=2), axis=-1)
    raise ValueError(f"mode is {mode!r}, not 'joint' or 'independent'")


def marginal_nll(mixture: MixtureArrays, truth: Array) -> Array:
    """Compute the marginal negative log-likelihood of each target of each day, in nats, [W, P, C]."""
    return -np.logaddexp.reduce(_log_weights(mixture)[:, :, None] + _log_densities(mixture, truth), axis=-1)


def _log_densities(mixture: MixtureArrays, truth: Array) -> Array:
    """Compute log N(truth; mean, std) of every component, [W, P, C, K]."""
    z = (truth[..., None] - mixture.means) / mixture.stds
    return -0.5 * z**2 - np.log(mixture.stds) - 0.5 * math.log(2 * math.pi)


def _log_weights(mixture: MixtureArrays) -> Array:
    """Return the logarithms of the weights, [W, P, K]: minus infinity for weights that underflowed to 0."""
    with np.errstate(divide="ignore"):
        logs: Array = np.log(mixture.weights)
    return logs


def interval_coverage(mixture: MixtureArrays, truth: Array, levels: Sequence[float]) -> list[float | None]:
    """Return, for each of `levels`, the share of `truth` [W, P, C] inside the central interval; None if not finite.

    The share is computed from the probability integral transform: a truth is inside the central interval of level q if
    the distribution function there is in [(1 - q) / 2, (1 + q) / 2] (Gneiting, Balabdaoui & Raftery, Probabilistic
    forecasts, calibration and sharpness, 2007).
    """
    pit = mixture_cdf(truth, mixture.means, mixture.stds, _for_each_target(mixture))
    if not np.isfinite(pit).all():
        return [None] * len(levels)
    return [float(np.mean(np.abs(pit - 0.5) <= 0.5 * level)) for level in levels]


def mixture_report(
    mixture: MixtureArrays, truth: Array, mode: str, targets: Sequence[str], levels: Sequence[float]
) -> dict[str, Any]:
    """Report the NLL in nats per forecast day, the CRPS and the coverage of the central intervals, in scaled units.

    `truth` is [W, P, C] and `mode` is `model.mdn_multivariate_mode`. The NLL by target is the marginal one. Values that
    are not finite are None.
    """
    day_nlls, marginal_nlls = day_nll(mixture, truth, mode), marginal_nll(mixture, truth)
    crps = mixture_crps(truth, mixture.means, mixture.stds, _for_each_target(mixture))
    return {
        "nll": {
            "overall": finite(day_nlls.mean()),
            "by_target": {name: finite(marginal_nlls[..., index].mean()) for index, name in enumerate(targets)},
            "by_horizon": [finite(value) for value in day_nlls.mean(axis=0)],
        },
        "crps": {
            "overall": finite(crps.mean()),
            "by_target": {name: finite(crps[..., index].mean()) for index, name in enumerate(targets)},
            "by_horizon": [finite(value) for value in crps.mean(axis=(0, 2))],
        },
        "coverage": {
            f"{100 * level:g}": share
            for level, share in zip(levels, interval_coverage(mixture, truth, levels), strict=True)
        },
    }


def _for_each_target(mixture: MixtureArrays) -> Array:
    """Broadcast the weights, which the targets of a day share, to [W, P, C, K]."""
    return np.broadcast_to(mixture.weights[:, :, None], mixture.means.shape)
