"""The learning rate of an epoch."""

import math


def learning_rate(schedule: str, epoch: int, *, peak: float, minimum: float, warmup_epochs: int, epochs: int) -> float:
    """The learning rate to set BEFORE epoch number `epoch` (from 0) of `epochs`.

    `constant`: `peak`. `warmup_cosine`: linear from peak / warmup_epochs to `peak`, reached in the last warm-up epoch,
    then half a cosine from `peak` towards `minimum`, which it would reach in epoch number `epochs`
    (Loshchilov & Hutter, SGDR, 2017, without restarts).
    """
    if schedule == "constant":
        return peak
    if schedule != "warmup_cosine":
        raise ValueError(f"schedule is {schedule!r}, not 'constant' or 'warmup_cosine'")
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * progress))
