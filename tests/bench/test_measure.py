"""Tests of `bench.measure` on known bytes, FLOPs and growth."""

import mmap

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import register_flop_formula

from bench import measure
from bench.measure import PeakMemory, count, count_saved, fit_exponent, forget_data, state_of, without_data
from bench.timing import quartiles, seconds_of

MIB = 2**20
CPU = torch.device("cpu")


def test_quartiles_of_several_values_and_of_one() -> None:
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == {"quartile_1": 2.0, "median": 3.0, "quartile_3": 4.0}
    assert quartiles([7.0]) == {"quartile_1": 7.0, "median": 7.0, "quartile_3": 7.0}


def test_every_run_is_timed() -> None:
    runs: list[int] = []
    assert len(seconds_of(lambda: runs.append(1), 4, CPU)) == len(runs) == 4


# --- memory -----------------------------------------------------------------------------------------------------------


def test_peak_is_measured_since_last_reset() -> None:
    memory = PeakMemory(CPU)
    # From the system, not the heap, where memory freed by earlier tests may still be resident.
    with mmap.mmap(-1, 64 * MIB) as held:
        for page in range(0, 64 * MIB, mmap.PAGESIZE):
            held[page] = 1
    assert 60 * MIB < memory.above_baseline() < 80 * MIB
    memory.forget()
    assert memory.above_baseline() < 30 * MIB


# --- counts -----------------------------------------------------------------------------------------------------------


def test_saved_storage_counts_once_and_ignored_tensors_do_not() -> None:
    weight, x = torch.randn(10, requires_grad=True), torch.randn(4, 10)
    with count_saved([weight, x]) as saved:
        product = weight * x  # saves both
        result = product.sin() * product.view(40).cos().view(4, 10)  # saves the product twice, and both factors
        result.sum().backward()
    assert saved.total == 3 * 4 * 40
    saved.forget()
    assert saved.total == 0


def test_tensors_kept_for_recomputation_are_counted() -> None:
    x = torch.randn(30, requires_grad=True)

    def recomputed(y: Tensor) -> Tensor:
        return y.sin().cos().exp()

    counts = count(lambda: checkpoint(recomputed, x * 2, use_reentrant=False), [x])
    assert counts.saved_bytes == 4 * 30
    assert count(lambda: recomputed(x * 2), [x]).saved_bytes == 3 * 4 * 30


@pytest.mark.parametrize("real", [True, False])
def test_flops_of_matrix_product(real: bool) -> None:
    def counted() -> measure.Counts:
        x, y = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
        return count(lambda: x @ y, [x, y])

    if real:
        counts = counted()
    else:
        with without_data():
            counts = counted()
    assert counts == measure.Counts(saved_bytes=0, forward_flops=2 * 3 * 5 * 7, flops=3 * 2 * 3 * 5 * 7)
    assert counts.record()["flops"] == 630


def test_recomputed_flops_are_counted_again() -> None:
    weight = torch.randn(5, 5, requires_grad=True)
    x = torch.randn(3, 5)

    def twice(y: Tensor) -> Tensor:
        return (y @ weight).relu() @ weight

    once = count(lambda: twice(x))
    again = count(lambda: checkpoint(twice, x, use_reentrant=False))
    assert once.flops == 2 * 5 * 5 * 3 * 5
    # torch stops before the last product, whose result is not needed.
    assert again.flops == once.flops + 2 * 3 * 5 * 5


def test_counts_without_data_equal_counts_with_data() -> None:
    def build() -> tuple[nn.Module, Tensor]:
        module = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU())
        module[0].bias.requires_grad_(False)
        return module, torch.randn(3, 5)

    def counted(module: nn.Module, x: Tensor) -> measure.Counts:
        return count(lambda: module(x), [*state_of(module), x])

    real, x = build()
    expected = counted(real, x)
    module, _ = build()
    with without_data():
        forget_data(module)
        assert counted(module, torch.empty(3, 5)) == expected
        assert all(isinstance(tensor, FakeTensor) for tensor in state_of(module))
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in real.parameters()]
    assert module.state_dict().keys() == real.state_dict().keys()


def test_recurrence_runs_without_data() -> None:
    recurrence = nn.GRU(4, 4, batch_first=True)
    with without_data():
        forget_data(recurrence)
        result, _ = recurrence(torch.empty(2, 3, 4))
    assert isinstance(result, FakeTensor)


@torch.library.custom_op("pgat_bench_tests::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x @ x @ x


@cube.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


cube.register_autograd(lambda ctx, gradient: gradient, setup_context=lambda ctx, inputs, output: None)


@register_flop_formula(torch.ops.pgat_bench_tests.cube)
def cube_flops(shape: tuple[int, ...], *, out_shape: tuple[int, ...]) -> int:
    return 4 * shape[0] ** 3


def test_custom_operator_counts_by_its_formula() -> None:
    with without_data():
        x = torch.randn(6, 6, requires_grad=True)
        assert count(lambda: cube(x)).flops == 4 * 6**3


# --- growth -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_exponent_is_that_of_large_sizes(power: float) -> None:
    sizes = [64, 128, 256, 512, 1024, 2000]
    assert fit_exponent(sizes, [1e3 + size**power for size in sizes]) == pytest.approx(power, abs=0.06)
    assert fit_exponent(sizes, [size**power for size in sizes]) == pytest.approx(power, abs=0.06)
    assert fit_exponent([4, 5], [1.0, 2.0]) is None
