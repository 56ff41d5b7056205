"""Validation loss during training."""

import math

from pgat_fast.data.windows import Windows
from pgat_fast.errors import TrainingError
from pgat_fast.evaluation.split_forecasts import mean_loss_of_split
from pgat_fast.training.optimizer_step import OptimizerStep
from pgat_fast.training.stopping import Control


def validation_loss(step: OptimizerStep, windows: Windows, control: Control) -> float:
    """Return the loss of the current weights, a mean over `windows`, which are divided among the ranks.

    Raises TrainingError if it is not finite, and what `Control.before_batch` raises.
    """
    loss = mean_loss_of_split(
        step.model, windows, step.mixture_mode, on_batch=control.before_batch, group=control.group
    )
    if not math.isfinite(loss):
        raise control.on_all_ranks(TrainingError(f"the validation loss is {loss}: lower training.learning_rate"))
    return loss
