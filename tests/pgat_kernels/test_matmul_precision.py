"""Tests that float32 products on the CPU are exact, and that torch's setting is restored."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pgat_kernels import matmul_precision
from pgat_kernels.matmul_precision import fast_exact_float32


def setting() -> Any:
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(4, 4, 4), (169, 208, 208), (1690, 208, 416), (33, 1, 7)])
def test_products_are_float32(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    torch.manual_seed(0)
    x, y = torch.randn(rows, inner), torch.randn(inner, columns)
    truth = x.double() @ y.double()
    with fast_exact_float32():
        actual = x @ y
    scale = float((x.abs().double() @ y.abs().double()).max())
    assert float((actual - truth).abs().max()) < inner**0.5 * 2.0**-23 * scale


def test_setting_is_restored_after_an_error() -> None:
    before = setting().fp32_precision
    with pytest.raises(ZeroDivisionError), fast_exact_float32():
        raise ZeroDivisionError
    assert setting().fp32_precision == before


def test_contexts_nest_and_keep_the_precision_of_the_caller() -> None:
    before = setting().fp32_precision
    try:
        setting().fp32_precision = "tf32"
        with fast_exact_float32(), fast_exact_float32():
            assert setting().fp32_precision == "tf32"
        assert setting().fp32_precision == "tf32"
    finally:
        setting().fp32_precision = before


def test_products_are_exact_if_onednn_would_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread, which allows rounding, must not change the products of this one."""
    monkeypatch.setattr(matmul_precision, "_onednn_is_exact", lambda: False)
    before = setting().fp32_precision
    rounding = matmul_precision.ONEDNN_PRODUCTS.set_to("tf32")
    with ThreadPoolExecutor(1) as other:
        other.submit(rounding.__enter__).result()
        with fast_exact_float32():
            assert setting().fp32_precision == "ieee"
        assert setting().fp32_precision == "tf32"
        other.submit(rounding.__exit__, None, None, None).result()
    assert setting().fp32_precision == before


def test_onednn_check_ignores_autocast_and_default_device_and_dtype() -> None:
    verdict = matmul_precision._onednn_is_exact.__wrapped__()
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert matmul_precision._onednn_is_exact.__wrapped__() == verdict
    torch.set_default_dtype(torch.float64)
    try:
        assert matmul_precision._onednn_is_exact.__wrapped__() == verdict
    finally:
        torch.set_default_dtype(torch.float32)
