"""Learning rate of an epoch, as a function of the settings and the validation losses so far."""

import math
from collections.abc import Sequence

from pgat_fast.config.schema import TrainingConfig


def learning_rate(settings: TrainingConfig, epoch: int, validation_losses: Sequence[float] = ()) -> float:
    """Return the learning rate to set BEFORE epoch `epoch` (from 0), given the validation losses of earlier epochs.

    `constant`: `learning_rate`. `warmup_cosine`: linear from learning_rate / warmup_epochs to `learning_rate`, reached
    in the last warm-up epoch, then half a cosine towards `min_lr`, which it would reach in epoch number `epochs`
    (Loshchilov & Hutter, SGDR, 2017, without restarts). `cosine`: the same without warm-up. `step`: multiplied by
    `lr_gamma` every `lr_step_epochs` epochs. `plateau`: multiplied by `lr_gamma` whenever the validation loss has not
    improved for `lr_patience` epochs. No schedule goes below `min_lr`.
    """
    peak, lowest = settings.learning_rate, settings.min_lr
    match settings.lr_schedule:
        case "constant":
            return peak
        case "step":
            return max(lowest, peak * settings.lr_gamma ** (epoch // settings.lr_step_epochs))
        case "plateau":
            return max(lowest, peak * settings.lr_gamma ** plateaus(validation_losses, settings.lr_patience))
        case "warmup_cosine" if epoch < settings.warmup_epochs:
            return peak * (epoch + 1) / settings.warmup_epochs
    warmup = settings.warmup_epochs if settings.lr_schedule == "warmup_cosine" else 0
    progress = (epoch - warmup) / (settings.epochs - warmup)
    return lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


def plateaus(losses: Sequence[float], patience: int) -> int:
    """Return how often `patience` epochs in a row brought no loss below the best; each time, the count restarts."""
    best, waited, plateau_count = math.inf, 0, 0
    for loss in losses:
        waited = 0 if loss < best else waited + 1
        best = min(best, loss)
        if waited == patience:
            plateau_count, waited = plateau_count + 1, 0
    return plateau_count
