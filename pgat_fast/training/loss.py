"""Loss that training minimises."""

from torch import Tensor

from pgat_fast.model.forecast import Diagnostics, Forecast, forecast_loss


def training_loss(
    forecast: Forecast, diagnostics: Diagnostics, target: Tensor, mixture_mode: str, kl_weight: float
) -> Tensor:
    """Return the forecast loss, plus the weighted divergence of the stochastic adjacency learner if there is one."""
    loss = forecast_loss(forecast, target, mixture_mode)
    if "kl_divergence" in diagnostics:
        loss = loss + kl_weight * diagnostics["kl_divergence"]
    return loss
