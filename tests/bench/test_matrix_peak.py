"""Tests of `bench.matrix_peak`: the peak is the best of the products."""

import pytest
import torch

from bench import matrix_peak as module
from bench.matrix_peak import best_peaks, matrix_peak
from pgat_fast.model.precision import Precision


@pytest.mark.parametrize("precision", ["highest", "high", "bf16"])
def test_peak_is_best_of_products(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIZES", ((64, 32, 48), (128, 128, 128)))
    before = torch.backends.mkldnn.matmul.fp32_precision
    peak = matrix_peak(precision, torch.device("cpu"), seconds=0.0)
    assert len(peak["gflop_per_second"]) == 2 * 2 * 2
    assert peak["gflop_per_second"][peak["product"]] == max(peak["gflop_per_second"].values())
    assert peak["flop_per_second"] / 1e9 == pytest.approx(peak["gflop_per_second"][peak["product"]], abs=0.06)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_best_peaks_are_best_of_all_processes_per_precision() -> None:
    def record(precision: str, rate: float) -> dict[str, object]:
        return {"precision": precision, "matrix_peak": {"flop_per_second": rate}}

    records = [record("bf16", 3.0), record("highest", 1.0), {"error": "no"}, record("highest", 2.0)]
    assert best_peaks(records) == {"bf16": {"flop_per_second": 3.0}, "highest": {"flop_per_second": 2.0}}
