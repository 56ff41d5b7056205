"""Operators with kernels at the sizes of a production timestep: plain torch and kernels.

Kernels are timed where they run. `--shape` sets the number of timesteps.
"""

from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.gpu.kernel_cases import CASES, DTYPES, Case, gradient
from bench.gpu.measure import parity
from bench.suite import TIMESTEPS, measure
from pgat_kernels.dispatch import why_no_kernels

EVERY = [(case, dtype) for case in CASES for dtype in case.dtypes if dtype != "fp16"]
IDS = [f"{case.operator}, {case.shape}, {dtype}" for case, dtype in EVERY]


@cache
def require_parity(case: Case, dtype: str, device: torch.device) -> None:
    """Fail if kernels do not compute what plain torch computes: wrong results are not timed."""
    outcome = parity(case, DTYPES[dtype], device, 16)
    if not outcome["ok"]:
        pytest.fail(f"{case.operator}, {case.shape}, {dtype} is wrong ({outcome}): not timed")


@pytest.mark.parametrize("which", ["forward", "backward", "both"])
@pytest.mark.parametrize("by", ["plain", "kernels"])
@pytest.mark.parametrize(("case", "dtype"), EVERY, ids=IDS)
def test_operator(
    benchmark: BenchmarkFixture, case: Case, dtype: str, by: str, which: str, shape: str, device: torch.device
) -> None:
    kernels = by == "kernels"
    reason = why_no_kernels(device, DTYPES[dtype])
    if kernels and reason:
        pytest.skip(reason)
    if kernels:
        require_parity(case, dtype, device)
    inputs = [x.detach().requires_grad_() for x in case.leaves(DTYPES[dtype], device, TIMESTEPS[shape])]
    g = gradient(case.run(inputs, kernels).detach())

    def forward() -> Tensor:
        return case.run(inputs, kernels)

    def backward(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, inputs, g, allow_unused=True)

    if which == "forward":
        measure(benchmark, forward, device, ignored=lambda: tuple(inputs))
    elif which == "backward":
        measure(benchmark, backward, device, setup=forward, saves=False)
    else:
        measure(benchmark, lambda: backward(forward()), device, ignored=lambda: tuple(inputs))
