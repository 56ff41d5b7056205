"""Operators with kernels at the sizes of a production timestep: plain torch, kernels, and their equivalents in torch.

Kernels are timed where they run. `--shape` sets the number of timesteps.
"""

from collections.abc import Callable, Sequence
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn import functional as F

from bench.gpu.kernel_cases import BODIES, CASES, DTYPES, HEADS, Case, gradient, numbers
from bench.gpu.measure import parity
from bench.suite import TIMESTEPS, measure
from pgat_kernels.dispatch import why_no_kernels

PASSES = ("forward", "backward", "both")
EVERY = [(case, dtype) for case in CASES for dtype in case.dtypes if dtype != "fp16"]
IDS = [f"{case.operator}, {case.shape}, {dtype}" for case, dtype in EVERY]


@cache
def require_parity(case: Case, dtype: str, device: torch.device) -> None:
    """Fail if kernels do not compute what plain torch computes: wrong results are not timed."""
    outcome = parity(case, DTYPES[dtype], device, 16)
    if not outcome["ok"]:
        pytest.fail(f"{case.operator}, {case.shape}, {dtype} is wrong ({outcome}): not timed")


def time_passes(
    benchmark: BenchmarkFixture,
    which: str,
    run: Callable[[list[Tensor]], Tensor],
    leaves: list[Tensor],
    device: torch.device,
    parameters: Sequence[Tensor] = (),
) -> None:
    """Time the forward pass, the backward pass, or both, of a function of tensors with gradients.

    `parameters` have gradients too.
    """
    inputs = [x.detach().requires_grad_() for x in leaves]
    held = (*inputs, *parameters)
    g = gradient(run(inputs).detach())

    def back(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, held, g, allow_unused=True)

    if which == "backward":
        measure(benchmark, back, device, setup=lambda: run(inputs), saves=False)
    elif which == "forward":
        measure(benchmark, lambda: run(inputs), device, held=lambda: held)
    else:
        measure(benchmark, lambda: back(run(inputs)), device, held=lambda: held)


@pytest.mark.parametrize("which", PASSES)
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
    leaves = case.leaves(DTYPES[dtype], device, TIMESTEPS[shape])
    time_passes(benchmark, which, lambda own: case.run(own, kernels), leaves, device)


@pytest.mark.parametrize("which", PASSES)
def test_stock_gru(benchmark: BenchmarkFixture, which: str, shape: str, device: torch.device) -> None:
    """Time `nn.GRU`, one body after the other, which `gru_bank` replaces."""
    (case,) = (case for case in CASES if (case.operator, case.shape) == ("gru_bank", "13 recurrences"))
    x = case.leaves(torch.float32, device, TIMESTEPS[shape])[0]
    grus = nn.ModuleList(nn.GRU(32, 32, batch_first=True) for _ in range(BODIES)).to(device)
    parameters = list(grus.parameters())

    def run(own: list[Tensor]) -> Tensor:
        return torch.stack([gru(own[0][:, :, i])[0] for i, gru in enumerate(grus)], dim=2)

    time_passes(benchmark, which, run, [x], device, parameters)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("nodes", [13, 39, 169], ids=lambda n: f"{n} nodes")
@pytest.mark.parametrize("by", ["graph_attention", "scaled_dot_product_attention", "flex_attention"])
def test_attention_without_mask(
    benchmark: BenchmarkFixture, by: str, nodes: int, which: str, shape: str, device: torch.device
) -> None:
    """Time attention on the same inputs, without bias, mask and dropout, which all of them support."""
    from pgat_kernels.ops.graph_attention import graph_attention

    graphs = TIMESTEPS[shape] * (BODIES if nodes == 39 else 1)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k, v = numbers((graphs, nodes, 3, HEADS, 26), dtype, device, salt=0).permute(2, 0, 3, 1, 4)
    function: Callable[..., Tensor] = graph_attention
    if by == "scaled_dot_product_attention":
        function = F.scaled_dot_product_attention
    elif by == "flex_attention":
        if device.type != "cuda" and which != "forward":
            pytest.skip("FlexAttention has no backward pass on a CPU")
        from torch.nn.attention.flex_attention import flex_attention

        function = torch.compile(flex_attention, fullgraph=True, dynamic=False)
        if device.type != "cuda":  # on a CPU it rejects inputs that require gradients
            measure(benchmark, lambda: function(q, k, v), device)
            return
    time_passes(benchmark, which, lambda own: function(*own), [q, k, v], device)
