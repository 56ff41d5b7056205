"""What training minimises."""

from torch import Tensor

from pgat_fast.model.forecast import Diagnostics, Forecast, Mixture, mixture_nll


def forecast_loss(forecast: Forecast, target: Tensor, mixture_mode: str) -> Tensor:
    """Mean squared error of a point forecast, negative log-likelihood of a mixture: a scalar, at least float32.

    `target`: scaled targets [B, P, c_out]. `mixture_mode`: see `mixture_nll`.
    """
    if isinstance(forecast, Mixture):
        return mixture_nll(forecast, target, mixture_mode)
    difference = forecast - target  # promotes a forecast of half precision to the target's float32
    return difference.square().mean()


def training_loss(
    forecast: Forecast, diagnostics: Diagnostics, target: Tensor, mixture_mode: str, kl_weight: float
) -> Tensor:
    """The forecast loss, plus the weighted divergence of the stochastic adjacency learner where there is one."""
    loss = forecast_loss(forecast, target, mixture_mode)
    if "kl_divergence" in diagnostics:
        loss = loss + kl_weight * diagnostics["kl_divergence"]
    return loss
