"""Shape checks of the four inputs of a model, shared by all backends."""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from pgat_fast.config.schema import ModelConfig

MAX_STEPS = 5000
"""Length of the position table."""


def check_inputs(config: "ModelConfig", x_enc: Tensor, x_mark_enc: Tensor, x_dec: Tensor, x_mark_dec: Tensor) -> None:
    """Raise ValueError if an input has a wrong shape; the message names the input, its shape and the expected one.

    The history may be shorter than `seq_len`, the number of learned positions; the decoder input has at least
    `pred_len` and at most `MAX_STEPS` steps.
    """
    _check("x_enc", x_enc, None, (1, config.seq_len), (config.enc_in, config.enc_in))
    batch, steps, _ = x_enc.shape
    _check("x_mark_enc", x_mark_enc, batch, (steps, steps), (1, 5))
    _check("x_dec", x_dec, batch, (config.pred_len, MAX_STEPS), (config.dec_in, config.dec_in))
    _check("x_mark_dec", x_mark_dec, batch, (x_dec.shape[1], x_dec.shape[1]), (1, 5))


def _check(name: str, tensor: Tensor, batch: int | None, steps: tuple[int, int], width: tuple[int, int]) -> None:
    """Check for three dimensions: `batch` samples (None: one or more), `steps` and `width` within (least, most)."""
    bounds = ((1, None) if batch is None else (batch, batch), steps, width)
    shape = tuple(tensor.shape)
    if len(shape) == 3 and all(
        least <= size and (most is None or size <= most) for size, (least, most) in zip(shape, bounds, strict=True)
    ):
        return
    expected = [
        str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
        for least, most in bounds
    ]
    raise ValueError(f"{name} has shape {list(shape)}, expected [{', '.join(expected)}]")
