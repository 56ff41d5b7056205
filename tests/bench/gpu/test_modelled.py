"""Tests of `bench.gpu.modelled`: what its perfect compiler moves, and that the committed lines are what it returns."""

import pytest
import torch
from torch import Tensor

from bench.gpu.cost_model import GPUS, LAUNCH_SECONDS, SUSTAINED
from bench.gpu.kernel_cases import CASES, DTYPES, Case
from bench.gpu.modelled import META, MODELLED, Codes, Trace, fused_seconds, modelled
from bench.gpu.tune import case_of, first_rows
from pgat_kernels.tuning_table import FILE, read

H100 = next(gpu for gpu in GPUS if gpu.name == "H100")
B200 = MODELLED["sm_100"]
ROWS = 2**20


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=META)


def test_operations_between_products_are_one_pass_over_inputs_and_used_results() -> None:
    x, w = empty(ROWS, 64), empty(64, 64)
    with Trace() as trace:
        h = x @ w
        y = h.neg().exp().mul(x)
        z = y @ w
    assert [operation.product is not None for operation in trace.operations] == [True, False, False, False, True]
    product = max(2 * ROWS * 64 * 64 / SUSTAINED / H100.flops_16, 2 * (2 * ROWS * 64 + 64 * 64) / H100.bandwidth)
    one_pass = 3 * 2 * ROWS * 64 / H100.bandwidth  # reads h and x, writes y
    assert fused_seconds(trace.operations, [z], H100) == pytest.approx(2 * product + one_pass)
    kept = fused_seconds(trace.operations, [z, trace.operations[1].outputs[0]], H100)
    assert kept == pytest.approx(2 * product + 4 * 2 * ROWS * 64 / H100.bandwidth)


def test_small_passes_and_views_take_a_launch_and_nothing() -> None:
    x = empty(4, 4)
    with Trace() as trace:
        y = x.view(2, 8).t().neg()
    assert fused_seconds(trace.operations, [y], H100) == LAUNCH_SECONDS


def test_product_in_place_is_a_product() -> None:
    x, w = empty(2, 8, 8), empty(2, 8, 8)
    with Trace() as trace:
        x.baddbmm_(w, w)
    (operation,) = trace.operations
    assert operation.product is not None
    assert operation.product.flops == 2 * 2 * 8**3


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.threshold in ("aspects", "edge_head")], ids=lambda case: case.operator
)
def test_committed_lines_are_those_of_this_code(case: Case) -> None:
    """For the architecture whose instructions are not counted, which takes minutes."""
    dtype = DTYPES[case.dtypes[0]]
    pairs = modelled(case, dtype, B200, Codes(B200.architecture))
    line = read(FILE)[B200.architecture].thresholds[case_of(case, dtype)]
    assert line == (first_rows(pairs), "modelled")
