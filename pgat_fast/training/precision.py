"""Mixed precision: which products are taken in 16 bits. Parameters, their gradients, the loss and Adam stay float32."""

import logging
from contextlib import AbstractContextManager

import torch

logger = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(asked: str, device: torch.device) -> torch.dtype | None:
    """The 16-bit type for `training.mixed_precision` on `device`; None is float32 throughout.

    `auto` is bfloat16 on a GPU that has it, float16 on another one, and float32 on a CPU, where 16 bits pay only on
    some processors. What is chosen is logged.
    """
    if asked == "off":
        return None
    if asked == "auto":
        if device.type != "cuda":
            logger.info("mixed_precision auto: float32 on a CPU (bf16 can be asked for)")
            return None
        asked = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    logger.info("mixed precision: products in %s, parameters and loss in float32", asked)
    return _DTYPES[asked]


def products_in(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[None]:
    """The context for a forward pass. `numerics` says what stays float32 within it."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def make_scaler(dtype: torch.dtype | None, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that float16 gradients do not vanish (Micikevicius et al., Mixed Precision Training, 2018).

    Does nothing for other types, which have the range of float32.
    """
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
