"""What the four inputs of a model must look like. Shared by every backend."""

from torch import Tensor

from pgat_fast.config.schema import ModelConfig


def check_inputs(config: ModelConfig, x_enc: Tensor, x_mark_enc: Tensor, x_dec: Tensor, x_mark_dec: Tensor) -> None:
    """Raise ValueError that names the input, its shape and the shape it should have.

    The history may be shorter than `seq_len` (the position table ends there); the decoder input needs at least
    `pred_len` steps.
    """
    marks = "1 to 5"
    batch = x_enc.shape[0]
    inputs = {
        "x_enc": (x_enc, f"[B, 1 to {config.seq_len}, {config.enc_in}]"),
        "x_mark_enc": (x_mark_enc, f"[B, same steps as x_enc, {marks}]"),
        "x_dec": (x_dec, f"[B, {config.pred_len} or more, {config.dec_in}]"),
        "x_mark_dec": (x_mark_dec, f"[B, same steps as x_dec, {marks}]"),
    }
    steps = {"x_enc": x_enc, "x_mark_enc": x_enc, "x_dec": x_dec, "x_mark_dec": x_dec}
    for name, (tensor, expected) in inputs.items():
        good = tensor.dim() == 3 and tensor.shape[0] == batch and tensor.shape[1] == steps[name].shape[1]
        if good and name == "x_enc":
            good = 1 <= tensor.shape[1] <= config.seq_len and tensor.shape[2] == config.enc_in
        elif good and name == "x_dec":
            good = tensor.shape[1] >= config.pred_len and tensor.shape[2] == config.dec_in
        elif good:
            good = 1 <= tensor.shape[2] <= 5
        if not good:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {expected} with B {batch}")
