"""Which operators are computed by kernels, and that the log says why one is not."""

import logging

import pytest
import torch

from bench.kernel_cases import CASES
from pgat_kernels import dispatch
from pgat_kernels.dispatch import COVERAGE, kernels_without_data, use_kernel, why_no_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_said", set())


def test_every_operator_with_kernels_is_in_the_table() -> None:
    takes = {line.operator: line.takes for line in COVERAGE}
    assert all(takes[case.operator] for case in CASES)


def test_kernels_run_on_gpus_in_the_dtypes_of_the_table() -> None:
    assert use_kernel("aspects", CUDA, [torch.float32, torch.bfloat16], fits=True)
    assert why_no_kernels(CUDA, torch.float64) == "kernels take float32, bfloat16 and float16, not torch.float64"
    assert why_no_kernels(CPU) == "Triton kernels run on GPUs, not on cpu"
    with kernels_without_data():
        assert use_kernel("aspects", CPU, [torch.float32], fits=True)


def test_a_fallback_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        assert not use_kernel("feed_forward_block", CUDA, [torch.float32], fits=False)
        assert not use_kernel("feed_forward_block", CPU, [torch.float32], fits=True)
    assert [record.getMessage() for record in caplog.records] == [
        "feed_forward_block is computed in plain torch: its kernels take rows of up to 256 columns, any hidden layer",
        "feed_forward_block is computed in plain torch: Triton kernels run on GPUs, not on cpu",
    ]


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("", False)])
def test_whether_kernels_are_interpreted_is_read_as_triton_reads_it(
    value: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert dispatch.interpreted() is expected
