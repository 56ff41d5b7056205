"""How matrix products are taken: float32 as fast as this processor takes it exactly, and never by autocast's choice."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch

from pgat_kernels.torch_features import has_autocast


def _setting() -> Any:
    """Torch's setting for float32 products of oneDNN, which its type stubs do not know."""
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@cache
def _onednn_is_exact() -> bool:
    """Whether oneDNN, allowed to take float32 products in bfloat16, takes them in float32 here all the same.

    It uses that permission only where a processor has matrix units for it (AMX). Elsewhere it computes exact float32
    products, more than twice as fast as the BLAS library that torch calls otherwise on processors without favour there.
    Found out by products that bfloat16 or TF32 could not represent, in the sizes that occur.
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
    """Within it, float32 products on the CPU take the fastest way that is exact float32 on this processor.

    Exact means IEEE products and float32 accumulation; the order of the sums may differ from other ways. Changes
    nothing where the caller has already allowed something faster, and nothing on a GPU.
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
    """Within it, products on `device` are taken in the dtype of their factors. Nothing to do where autocast is unknown,
    as on the meta device.
    """
    kind = device.type
    return torch.autocast(kind, enabled=False) if has_autocast(kind) else nullcontext()
