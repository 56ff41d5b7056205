"""Tests that benchmarks compare kernels with the reference before timing them, and report wrong ones."""

from collections.abc import Iterator

import pytest

from bench import parity
from tests.bench.planting import plant

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("large_tiles")]

TINY = (
    "model.seq_len=2", "model.label_len=1", "model.pred_len=1", "model.d_model=13", "model.n_heads=1",
    "model.fusion_layers=1", "run.device=cpu",
)  # fmt: skip
"""Settings of a model small enough for the interpreter."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parity, "SETTINGS", TINY)
    parity.require_parity.cache_clear()
    yield
    parity.require_parity.cache_clear()


def test_correct_kernels_pass() -> None:
    parity.require_parity("triton", "batched")


def test_wrong_kernels_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "triton", "readout")
    with pytest.raises(parity.ParityError, match=r"the forecast by kernels is off by .*: nothing is timed that"):
        parity.require_parity("triton", "batched")
