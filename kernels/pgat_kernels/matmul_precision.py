"""Precision of matrix products: the fastest exact float32 on this processor, and no autocast inside operators."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from pgat_kernels.torch_features import has_autocast


def _setting() -> Any:
    """Return torch's setting for float32 products of oneDNN, which is missing in its type stubs."""
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@cache
def _onednn_is_exact() -> bool:
    """Return whether oneDNN computes exact float32 products here even if it is allowed to use bfloat16.

    oneDNN uses that permission only on processors with matrix units for bfloat16 (AMX). On others it computes exact
    float32 products, more than twice as fast as torch's default BLAS library where that is not tuned for the processor.
    The test multiplies numbers that bfloat16 and TF32 cannot represent, in typical sizes.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    setting = _setting()
    before = setting.fp32_precision
    try:
        setting.fp32_precision = "bf16"
        for rows, inner, columns in ((32, 16, 32), (169, 208, 208), (1690, 208, 416)):
            x = torch.ones(rows, inner, dtype=torch.float32, device="cpu")
            y = torch.zeros(inner, columns, dtype=torch.float32, device="cpu")
            x[:, 0] = 1 + 2.0**-20
            y[0] = 1.0
            with no_autocast(x.device):
                products = x @ y, torch.stack((x, x)) @ torch.stack((y, y))
            if not all(bool((product == 1 + 2.0**-20).all()) for product in products):
                return False
        return True
    finally:
        setting.fp32_precision = before


@contextmanager
def fast_exact_float32() -> Iterator[None]:
    """Compute float32 products on the CPU by the fastest exact method of this processor within the context.

    Exact means IEEE products and float32 accumulation; the order of the sums may differ between methods. The context
    changes nothing if the caller has already allowed a faster precision, and nothing on a GPU.
    """
    setting = _setting()
    before = setting.fp32_precision
    if before in ("tf32", "bf16") or not _onednn_is_exact():
        yield
        return
    try:
        setting.fp32_precision = "bf16"
        yield
    finally:
        setting.fp32_precision = before


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Disable autocast on `device` within the context, so that products have the dtype of their factors.

    It does nothing on devices without autocast, such as the meta device.
    """
    kind = device.type
    return torch.autocast(kind, enabled=False) if has_autocast(kind) else nullcontext()
