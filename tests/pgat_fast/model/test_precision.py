"""Precision of products: resolution of the setting, its effect, and restoration of torch's settings."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pgat_fast.errors import BackendError
from pgat_fast.model import precision as tested
from pgat_fast.model.precision import Precision, float32_products_in, product_dtype, products_in, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
ONEDNN: Any = torch.backends.mkldnn
CUDNN: Any = torch.backends.cudnn
ALL: tuple[Precision, ...] = ("highest", "high", "bf16", "fp16")


def settings() -> tuple[str, ...]:
    """Return all settings of torch that the module may change, and whether autocast is enabled."""
    holders = (ONEDNN.matmul, ONEDNN.conv, ONEDNN.rnn, torch.backends.cuda.matmul, CUDNN.conv, CUDNN.rnn)
    return (*(holder.fp32_precision for holder in holders), str(torch.is_autocast_enabled("cpu")))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = settings()
    yield
    assert settings() == before


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    """Allow TF32 in this process, as a caller might."""
    before = ONEDNN.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    ONEDNN.matmul.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    ONEDNN.matmul.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def gpu(monkeypatch: pytest.MonkeyPatch, *, bf16: bool, capability: tuple[int, int] = (9, 0)) -> None:
    """Simulate a GPU."""
    monkeypatch.setattr(tested, "_gpu_has_bf16", lambda device: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")


@pytest.mark.parametrize(
    ("asked", "resolved"), [("highest", "highest"), ("auto", "highest"), ("bf16", "bf16"), ("fp16", "fp16")]
)
def test_resolved_precision_on_a_cpu(asked: str, resolved: str) -> None:
    assert resolve_precision(asked, CPU) == resolved


@pytest.mark.parametrize("tf32", [True, False])
def test_high_becomes_highest_on_a_cpu_without_tf32(
    tf32: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tested, "_cpu_has_tf32", lambda: tf32)
    assert resolve_precision("high", CPU) == ("high" if tf32 else "highest")
    assert ("no TF32 on cpu" in caplog.text) is not tf32


@pytest.mark.parametrize("missing", [True, False])
def test_cpu_without_16_bit_instructions_causes_a_warning(
    missing: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": not missing})
    assert resolve_precision("bf16", CPU) == "bf16"
    assert [r.levelname for r in caplog.records if r.levelno >= logging.WARNING] == ["WARNING"] * missing


@pytest.mark.parametrize(
    ("asked", "bf16", "capability", "resolved"),
    [
        ("auto", True, (9, 0), "bf16"),
        ("auto", False, (7, 0), "highest"),
        ("highest", True, (9, 0), "highest"),
        ("high", True, (8, 0), "high"),
        ("high", False, (7, 5), "highest"),
        ("bf16", True, (8, 0), "bf16"),
        ("fp16", False, (7, 0), "fp16"),
    ],
)
def test_resolved_precision_on_a_gpu(
    asked: str, bf16: bool, capability: tuple[int, int], resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(monkeypatch, bf16=bf16, capability=capability)
    assert resolve_precision(asked, GPU) == resolved


def test_unsupported_precision_of_a_gpu_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, bf16=False, capability=(7, 0))
    with pytest.raises(BackendError, match=r"run\.precision is bf16, but Tesla V100 has no bfloat16: use fp16 or high"):
        resolve_precision("bf16", GPU)


def test_unknown_precision_lists_valid_ones() -> None:
    with pytest.raises(BackendError, match="precision is 'medium', not one of auto, highest, high, bf16, fp16"):
        resolve_precision("medium", CPU)


def test_tf32_check_restores_settings() -> None:
    tested._cpu_has_tf32.cache_clear()
    assert tested._cpu_has_tf32() in (True, False)


def one_and_a_bit() -> tuple[Tensor, Tensor]:
    """Return factors whose product neither TF32 nor bfloat16 can represent."""
    x, y = torch.zeros(64, 64), torch.zeros(64, 64)
    x[:, 0], y[0] = 1 + 2.0**-20, 1.0
    return x, y


@pytest.mark.usefixtures("tf32_allowed")
@pytest.mark.parametrize("context", [products_in, float32_products_in])
def test_highest_is_exact_even_if_tf32_is_allowed(context: Any) -> None:
    x, y = one_and_a_bit()
    with torch.autocast("cpu", dtype=torch.bfloat16), context("highest", CPU):
        products = x @ y
    if context is products_in:
        assert products.dtype == torch.float32
        assert bool((products == 1 + 2.0**-20).all())
    else:
        assert products.dtype == torch.bfloat16, "autocast is not its business"


@pytest.mark.parametrize("precision", ALL)
def test_products_have_the_requested_dtype(precision: Precision) -> None:
    x, y = one_and_a_bit()
    with products_in(precision, CPU):
        assert (x @ y).dtype == (product_dtype(precision) or torch.float32)


def test_high_allows_only_tf32() -> None:
    with products_in("high", CPU):
        assert {ONEDNN.matmul.fp32_precision, ONEDNN.conv.fp32_precision, ONEDNN.rnn.fp32_precision} == {"tf32"}


def test_convolutions_are_exact_even_if_bf16_is_allowed() -> None:
    before = ONEDNN.conv.fp32_precision
    ONEDNN.conv.fp32_precision = "bf16"
    try:
        with products_in("highest", CPU):
            assert ONEDNN.conv.fp32_precision == "ieee"
    finally:
        ONEDNN.conv.fp32_precision = before


@pytest.mark.parametrize(("precision", "value"), [("highest", "ieee"), ("high", "tf32"), ("bf16", "ieee")])
def test_float32_settings_of_a_gpu(precision: Precision, value: str) -> None:
    onednn = ONEDNN.matmul.fp32_precision
    with float32_products_in(precision, GPU):
        assert settings()[3:6] == (value,) * 3
        assert ONEDNN.matmul.fp32_precision == onednn


@pytest.mark.usefixtures("tf32_allowed")
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("precision", ALL)
def test_settings_are_restored_after_an_error(precision: Precision, device: torch.device) -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError), float32_products_in(precision, device):
        raise ZeroDivisionError
    assert settings() == before
    with pytest.raises(ZeroDivisionError), products_in(precision, CPU), products_in("highest", CPU):
        raise ZeroDivisionError
    assert settings() == before


def test_auto_of_a_resumed_run_falls_back_where_its_precision_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu(monkeypatch, bf16=False, capability=(7, 0))
    assert resolve_precision("auto", GPU, kept="bf16") == "highest"
    assert "this run began in bf16, which Tesla V100 does not have" in caplog.text


@pytest.mark.parametrize(("asked", "resolved"), [("auto", "bf16"), ("highest", "highest"), ("fp16", "fp16")])
def test_auto_keeps_the_precision_of_a_resumed_run(asked: str, resolved: str) -> None:
    assert resolve_precision(asked, CPU, kept="bf16") == resolved
