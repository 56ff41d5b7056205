"""Measured peak rate of matrix products on this machine, which fractions of the peak are relative to."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.timing import shortest
from pgat_fast.model.precision import Precision, float32_products_in, product_dtype

SIZES: Final = ((2048, 2048, 2048), (4096, 208, 624), (1690, 208, 416))
"""Rows, inner size, columns: a large square product, and products of the combiner."""

CUDA_SIZES: Final = ((8192, 8192, 8192), (65_536, 208, 624))
"""More sizes, large enough to fill a GPU."""


def matrix_peak(precision: Precision, device: torch.device, seconds: float = 0.2) -> dict[str, Any]:
    """Return the best rate of matrix products in `precision`, over sizes and ways of computing them.

    Args:
        precision: precision of the products.
        device: the device to measure.
        seconds: how long each product is repeated in each way; its shortest time counts.

    Returns:
        `flop_per_second` of the best, the `product` that reached it, and `gflop_per_second` of every one in each way:
        `torch` uses torch's default settings, `pgat_fast` those of training; `mm` writes into an existing tensor,
        `linear` into a new one.
    """
    dtype = product_dtype(precision) or torch.float32
    rates: dict[str, float] = {}
    for rows, inner, columns in SIZES + (CUDA_SIZES if device.type == "cuda" else ()):
        x = torch.randn(rows, inner, device=device).to(dtype)
        weight = torch.randn(columns, inner, device=device).to(dtype)
        transposed, out = weight.t().contiguous(), torch.empty(rows, columns, dtype=dtype, device=device)
        for settings in ("torch", "pgat_fast"):
            for way, product in _ways(x, weight, transposed, out).items():
                with torch.no_grad(), _settings(settings, precision, device):
                    shortest_seconds = shortest(product, seconds, device)
                rates[f"{rows}x{inner}x{columns} {settings} {way}"] = 2 * rows * inner * columns / shortest_seconds
    best = max(rates, key=rates.__getitem__)
    return {
        "flop_per_second": rates[best],
        "product": best,
        "gflop_per_second": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
    }


def _ways(x: Tensor, weight: Tensor, transposed: Tensor, out: Tensor) -> dict[str, Callable[[], Tensor]]:
    return {"mm": lambda: torch.mm(x, transposed, out=out), "linear": lambda: F.linear(x, weight)}


def _settings(name: str, precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    return nullcontext() if name == "torch" else float32_products_in(precision, device)


def best_peaks(records: Iterable[Mapping[str, Any]]) -> dict[Precision, dict[str, Any]]:
    """Return precision -> the best peak in any of `records`; failed records have none and are skipped."""
    peaks: dict[Precision, dict[str, Any]] = {}
    for record in records:
        if "matrix_peak" not in record:
            continue
        peak, precision = record["matrix_peak"], record["precision"]
        if precision not in peaks or peak["flop_per_second"] > peaks[precision]["flop_per_second"]:
            peaks[precision] = peak
    return peaks
