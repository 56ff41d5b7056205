"""Precision of products (matrix products, convolutions, recurrences): one setting for all devices.

`highest`: IEEE float32. `high`: float32 sums of products with factors rounded to TF32, if the processor supports it.
`bf16`, `fp16`: 16-bit factors by autocast. Parameters, their gradients, the loss and Adam are always float32; for other
operations in float32 see `numerics`. For the rounding that torch allows see
https://docs.pytorch.org/docs/2.13/notes/cuda.html and https://docs.pytorch.org/docs/2.13/notes/mkldnn.html.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Final, Literal

import torch

from pgat_fast.errors import BackendError
from pgat_kernels.matmul_precision import ONEDNN_PRODUCTS, fast_exact_float32, float32_setting

logger = logging.getLogger(__name__)

Precision = Literal["highest", "high", "bf16", "fp16"]

# mypy does not know the attributes of these modules.
_CUDNN: Final[Any] = torch.backends.cudnn
_ONEDNN: Final[Any] = torch.backends.mkldnn
_SETTINGS: Final = {
    "cpu": (
        ONEDNN_PRODUCTS,
        float32_setting(_ONEDNN.conv, lambda: _ONEDNN.fp32_precision),
        float32_setting(_ONEDNN.rnn, lambda: _ONEDNN.fp32_precision),
    ),
    "cuda": tuple(
        float32_setting(holder, lambda: _CUDNN.fp32_precision)
        for holder in (torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn)
    ),
}
"""torch's settings of matrix products, convolutions and recurrences for each type of device."""
_DTYPES: Final[dict[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TF32_CAPABILITY: Final = (8, 0)
"""The first compute capability with TF32 (NVIDIA A100)."""
# Instruction sets with 16-bit products; without them torch computes the same results, but slower.
_CPU_INSTRUCTIONS: Final = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "fp16")}


def product_dtype(precision: Precision) -> torch.dtype | None:
    """Return the 16-bit dtype of products, or None for float32."""
    return _DTYPES.get(precision)


def resolve_precision(asked: str, device: torch.device, kept: str | None = None) -> Precision:
    """Return the precision that `run.precision` selects on `device`, and log it unless `highest` was asked for.

    `auto` selects `kept`, the precision of a resumed run, if the device supports it. Otherwise it selects bfloat16
    on a GPU that supports it (compute capability 8.0), and `highest` on other GPUs, where float16 can overflow, and on
    a CPU, where 16 bits are faster only on some processors. `high` becomes `highest` if the processor has no TF32.

    Raises BackendError for an unknown precision, or one that the device does not support.
    """
    if asked == "auto" and kept == "bf16" and device.type == "cuda" and not _gpu_has_bf16(device):
        logger.warning(
            "precision auto: this run began in bf16, which %s does not have: it continues in float32",
            torch.cuda.get_device_name(device),
        )
    elif asked == "auto" and kept is not None:
        logger.info("precision auto: %s, as when this run began", kept)
        asked = kept
    match asked:
        case "highest":
            return "highest"
        case "auto" if device.type != "cuda":
            logger.info("precision auto: float32 on a CPU (set run.precision=bf16 for bfloat16)")
            return "highest"
        case "auto" if not _gpu_has_bf16(device):
            logger.info("precision auto: float32, since %s has no bfloat16", torch.cuda.get_device_name(device))
            return "highest"
        case "auto":
            precision: Precision = "bf16"
        case "high" if not _has_tf32(device):
            logger.info("precision high: no TF32 on %s: products in IEEE float32, as `highest`", device)
            return "highest"
        case "high":
            logger.info("precision high: products of TF32 factors, summed in float32")
            return "high"
        case "bf16" | "fp16":
            precision = asked
        case _:
            raise BackendError(f"precision is {asked!r}, not one of auto, highest, high, bf16, fp16")
    if precision == "bf16" and device.type == "cuda" and not _gpu_has_bf16(device):
        raise BackendError(
            f"run.precision is bf16, but {torch.cuda.get_device_name(device)} has no bfloat16: use fp16 or highest"
        )
    if device.type == "cpu" and not _cpu_has(precision):
        logger.warning("precision %s: slow on this processor, which has no instructions for it", precision)
    logger.info("precision %s: for products; parameters, reductions and loss are float32", precision)
    return precision


def _gpu_has_bf16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_has(precision: str) -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in _CPU_INSTRUCTIONS[precision])


def _has_tf32(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.version.hip is None and torch.cuda.get_device_capability(device) >= _TF32_CAPABILITY
    return _cpu_has_tf32()


@cache
def _cpu_has_tf32() -> bool:
    """Return whether oneDNN rounds factors to TF32 on this CPU when allowed; tested with one product."""
    if not _ONEDNN.is_available():
        return False
    x, y = (torch.zeros(256, 256, dtype=torch.float32, device="cpu") for _ in range(2))
    x[:, 0], y[0] = 1 + 2.0**-20, 1.0  # TF32 has 10 fraction bits
    with ONEDNN_PRODUCTS.set_to("tf32"):
        return not bool((x @ y == 1 + 2.0**-20).all())


@contextmanager
def float32_products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Set the precision of float32 products on `device` within the context; for a backward pass.

    With `bf16` and `fp16`, the products that stay float32 are IEEE float32. torch's settings belong to the process, not
    to the thread. The last of the threads in such a context restores them, also after an error. While one of them asks
    for IEEE float32, those that ask for `high` compute in it, too. See `pgat_kernels.process_settings.SharedSetting`.
    """
    rounding = "tf32" if precision == "high" else "ieee"
    with ExitStack() as stack:
        for setting in _SETTINGS.get(device.type, ()):
            stack.enter_context(setting.set_to(rounding))
        if device.type == "cpu" and precision != "high":
            stack.enter_context(fast_exact_float32())
        yield


@contextmanager
def products_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Take products on `device` in `precision` within the context, whatever the caller's settings; for a forward pass.

    Run the backward pass in `float32_products_in` instead: autograd records which products were 16-bit.
    """
    dtype = product_dtype(precision)
    autocast = torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    with float32_products_in(precision, device), autocast:
        yield
