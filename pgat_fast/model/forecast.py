"""Model outputs and their losses, shared by all backends."""

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from pgat_fast.model.numerics import at_least_float32


class Mixture(NamedTuple):
    """A mixture of K normal distributions for every forecast day.

    Attributes:
        means: [B, P, c_out, K].
        log_stds: [B, P, c_out, K], logarithms of standard deviations, within [-10, 2].
        log_weights: [B, P, K], unnormalised logarithms of the weights.
    """

    means: Tensor
    log_stds: Tensor
    log_weights: Tensor

    def point(self) -> Tensor:
        """Return the weighted mean of the means, [B, P, c_out]."""
        weights = torch.softmax(at_least_float32(self.log_weights), dim=-1).to(self.means.dtype)
        return (self.means * weights[:, :, None]).sum(dim=-1)


Forecast: TypeAlias = Tensor | Mixture
"""Scaled targets [B, P, c_out], or a mixture for them."""

Diagnostics: TypeAlias = dict[str, Tensor]
"""Named intermediate results; see the model's `forward`."""


def point_forecast(forecast: Forecast) -> Tensor:
    """Return the point forecast, [B, P, c_out]; for a mixture its mean."""
    return forecast.point() if isinstance(forecast, Mixture) else forecast


def mixture_nll(mixture: Mixture, target: Tensor, mode: str) -> Tensor:
    """Return the mean negative log-likelihood of `target` [B, P, c_out]: a float32 (float64) scalar in nats a day.

    mode `joint`: the targets of a day share one component, -log sum_k w_k prod_c N(y_c; mean_ck, std_ck).
    mode `independent`: each target has its own component, -sum_c log sum_k w_k N(y_c; mean_ck, std_ck).
    Reference: Bishop, Mixture Density Networks, 1994.
    """
    means, log_stds, log_weights = map(at_least_float32, mixture)
    z = (at_least_float32(target).unsqueeze(-1) - means) * torch.exp(-log_stds)
    log_density = -0.5 * z.square() - log_stds - 0.5 * math.log(2 * math.pi)  # [B, P, c_out, K]
    log_weights = torch.log_softmax(log_weights, dim=-1)  # [B, P, K]
    if mode == "joint":
        return -torch.logsumexp(log_weights + log_density.sum(dim=2), dim=-1).mean()
    if mode == "independent":
        return -torch.logsumexp(log_weights[:, :, None] + log_density, dim=-1).sum(dim=-1).mean()
    raise ValueError(f"mode is {mode!r}, not 'joint' or 'independent'")


def forecast_loss(forecast: Forecast, target: Tensor, mixture_mode: str) -> Tensor:
    """Return the mean squared error of a point forecast, or the negative log-likelihood of a mixture.

    `target`: scaled targets [B, P, c_out]. `mixture_mode`: see `mixture_nll`. The result is a scalar, at least float32.
    """
    if isinstance(forecast, Mixture):
        return mixture_nll(forecast, target, mixture_mode)
    return (at_least_float32(forecast) - target).square().mean()
