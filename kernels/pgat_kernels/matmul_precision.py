"""Precision of matrix products: the fastest exact float32 on this processor, and no autocast inside operators."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, Final

import torch

from pgat_kernels.process_settings import SharedSetting
from pgat_kernels.torch_features import has_autocast

_BY_PREFERENCE: Final = ("bf16", "ieee", "tf32")
"""Values of `fp32_precision`, the one that applies first if threads ask for several. `bf16` is asked for only where it
computes exact float32 products, so that the first two are exact; a thread that permits TF32 gets more than it needs."""


def float32_setting(holder: Any, parent: Callable[[], str]) -> SharedSetting[str]:
    """Return torch's setting `holder.fp32_precision`, which belongs to the process, as a `SharedSetting`.

    If threads ask for different precisions, the exact one applies to all. `parent` returns the precision that the
    setting inherits: torch does not tell an inherited precision from an equal one that was set, and it is restored as
    inherited.
    """

    def write(value: str) -> None:
        holder.fp32_precision = value

    return SharedSetting(
        lambda: str(holder.fp32_precision),
        write,
        choose=lambda values: min(values, key=_BY_PREFERENCE.index),
        to_restore=lambda value: "none" if value == parent() else value,
    )


_ROUNDING_UNITS: Final = ("amx_bf16", "bf16")
"""Instruction sets of x86 and ARM with which oneDNN rounds factors to bfloat16 if it is allowed to."""

# mypy does not know the attributes of this module.
_ONEDNN: Final[Any] = torch.backends.mkldnn
ONEDNN_PRODUCTS: Final = float32_setting(_ONEDNN.matmul, lambda: _ONEDNN.fp32_precision)
"""torch's setting for float32 products of oneDNN."""


@cache
def _onednn_is_exact() -> bool:
    """Return whether oneDNN computes exact float32 products here even if it is allowed to use bfloat16.

    oneDNN uses that permission only on processors with matrix units for bfloat16 (AMX). On others it computes exact
    float32 products, more than twice as fast as torch's default BLAS library where that is not tuned for the processor.
    The test multiplies numbers that bfloat16 and TF32 cannot represent, in typical sizes.
    """
    capabilities = torch.cpu.get_capabilities()
    if not _ONEDNN.is_available() or any(capabilities.get(name) for name in _ROUNDING_UNITS):
        return False  # here the test would round the products of other threads
    with ONEDNN_PRODUCTS.set_to("bf16"):
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


@contextmanager
def fast_exact_float32() -> Iterator[None]:
    """Compute float32 products on the CPU by the fastest exact method of this processor within the context.

    Exact means IEEE products and float32 accumulation; the order of the sums may differ between methods. The context
    changes nothing if the caller has already allowed a faster precision, and nothing on a GPU. torch's setting belongs
    to the process: products that other threads compute meanwhile are as exact (see `SharedSetting`).
    """
    if ONEDNN_PRODUCTS.asked() in ("tf32", "bf16"):
        yield
        return
    with ONEDNN_PRODUCTS.set_to("bf16" if _onednn_is_exact() else "ieee"):
        yield


def products_without_onednn() -> AbstractContextManager[None]:
    """Compute float32 products on the CPU without oneDNN within the context, unless another thread needs it.

    The products are IEEE float32, whatever precision the caller allows.
    """
    return ONEDNN_PRODUCTS.set_to("ieee")


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Disable autocast on `device` within the context, so that products have the dtype of their factors.

    It does nothing on devices without autocast, such as the meta device.
    """
    kind = device.type
    return torch.autocast(kind, enabled=False) if has_autocast(kind) else nullcontext()
