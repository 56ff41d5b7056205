"""A batch of windows, as models and the training step take it. Needs torch alone."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pgat_fast.data.columns import CELLS

if TYPE_CHECKING:
    from pgat_fast.config.schema import ModelConfig


class Batch(NamedTuple):
    """B windows of S days of history (the last L also for the decoder) and P days to forecast; all float32."""

    x_enc: Tensor
    """[B, S, F], scaled inputs."""
    x_mark_enc: Tensor
    """[B, S, M], calendar fractions."""
    x_dec: Tensor
    """[B, L + P, F], the last L days of history, then the days to forecast, 0 in columns that are unknown."""
    x_mark_dec: Tensor
    """[B, L + P, M]"""
    y: Tensor
    """[B, P, c_out], scaled targets."""


def example(model: "ModelConfig", batch: int) -> Batch:
    """Return `batch` windows of random numbers with the shapes that `model` expects."""
    history, steps = model.seq_len, model.label_len + model.pred_len
    marks = len(CELLS) if model.freq == "t" else len(CELLS) - 1
    return Batch(
        x_enc=torch.randn(batch, history, model.enc_in),
        x_mark_enc=torch.rand(batch, history, marks),
        x_dec=torch.randn(batch, steps, model.dec_in),
        x_mark_dec=torch.rand(batch, steps, marks),
        y=torch.randn(batch, model.pred_len, model.c_out),
    )
