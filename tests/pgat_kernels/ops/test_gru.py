"""Tests of many GRUs in one scan, compared with separate `torch.nn.GRU` modules."""

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pgat_kernels.ops.gru import gru_bank, gru_bank_operator
from tests.combinations import pairwise
from tests.pgat_kernels.gradients import EXACT, Call, assert_close, normal, results
from tests.rounding import assert_right_up_to_rounding

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def values_of(batch: int, steps: int, groups: int, width: int, size: int) -> list[Tensor]:
    """Return x, w_ih, w_hh, b_ih and b_hh in float64."""
    shapes = [(groups, 3 * size, width), (groups, 3 * size, size), (groups, 3 * size), (groups, 3 * size)]
    weights = [normal(*shape, seed=seed) / shape[-1] ** 0.5 for seed, shape in enumerate(shapes, 2)]
    return [normal(batch, steps, groups, width), *weights]


def in_one_scan(product: torch.dtype = torch.float64, *, recompute: bool = True) -> Call:
    def call(*values: Tensor) -> Tensor:
        return gru_bank(*values, product, recompute=recompute)

    return call


def one_by_one(x: Tensor, *weights: Tensor) -> Tensor:
    """Compute every group by torch's GRU."""
    results = []
    for group in range(x.shape[2]):
        parameters = {name: weight[group] for name, weight in zip(NAMES, weights, strict=True)}
        size, width = parameters["weight_hh_l0"].shape[1], x.shape[3]
        gru = nn.GRU(width, size, batch_first=True, dtype=x.dtype)
        results.append(torch.func.functional_call(gru, parameters, (x[:, :, group],))[0])
    return torch.stack(results, dim=2)


def step_by_step(x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """Compute the states by the formulas of the module's docstring."""
    h = x.new_zeros(x.shape[0], x.shape[2], w_hh.shape[2])
    states = []
    for t in range(x.shape[1]):
        a_r, a_z, a_n = (torch.einsum("bgi,goi->bgo", x[:, t], w_ih) + b_ih).chunk(3, dim=-1)
        u_r, u_z, u_n = (torch.einsum("bgi,goi->bgo", h, w_hh) + b_hh).chunk(3, dim=-1)
        z = torch.sigmoid(a_z + u_z)
        h = (1 - z) * torch.tanh(a_n + torch.sigmoid(a_r + u_r) * u_n) + z * h
        states.append(h)
    return torch.stack(states, dim=1)


SIZES = [(1, 1, 1, 1, 1), (1, 7, 13, 32, 32), (3, 1, 2, 4, 3), (3, 7, 2, 3, 5), (2, 40, 3, 6, 4)]
"""Samples, steps, groups, inputs and states."""


@pytest.mark.parametrize(
    ("size", "formula", "recompute"),
    pairwise(SIZES, [one_by_one, step_by_step], [True, False]),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_states_and_gradients_equal_those_of_separate_grus(
    size: tuple[int, ...], formula: Call, recompute: bool
) -> None:
    values = values_of(*size)
    assert_close(results(in_one_scan(recompute=recompute), values), results(formula, values))


@pytest.mark.parametrize("order", [(1, 0, 2, 3), (2, 0, 1, 3), (3, 2, 1, 0)])
def test_results_do_not_depend_on_strides(order: tuple[int, ...]) -> None:
    values = values_of(3, 7, 2, 3, 5)
    back = [order.index(k) for k in range(4)]

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        states = gru_bank(x.permute(order).contiguous().permute(back), *weights, torch.float64)
        return states.permute(order).contiguous().permute(back)  # its gradient has other strides, too

    for actual, expected in zip(results(call, values), results(in_one_scan(), values), strict=True):
        assert torch.equal(actual, expected)


def test_saturated_gates_give_finite_gradients() -> None:
    values = [100 * value for value in values_of(2, 9, 2, 3, 4)]
    for actual, expected in zip(results(in_one_scan(), values), results(one_by_one, values), strict=True):
        assert actual.isfinite().all()
        assert torch.allclose(actual, expected, rtol=1e-10, atol=EXACT)


@pytest.mark.parity
def test_float32_errors_are_within_the_rounding_bound_of_torch() -> None:
    values = values_of(3, 60, 4, 16, 16)
    assert_right_up_to_rounding(
        results(in_one_scan(torch.float32), values, torch.float32),
        results(one_by_one, values),
        lambda tensors: results(one_by_one, tensors, torch.float32),
        [value.float() for value in values],
        torch.float32,
    )


@pytest.mark.parity
def test_only_products_with_the_inputs_have_16_bits() -> None:
    values = values_of(3, 60, 4, 16, 16)

    def with_autocast(call: Call) -> Call:
        def autocast(*inputs: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return call(*inputs)

        return autocast

    bf16_results = results(with_autocast(in_one_scan(torch.bfloat16)), values, torch.float32)
    assert all(tensor.dtype == torch.float32 for tensor in bf16_results)
    assert_right_up_to_rounding(
        bf16_results,
        results(one_by_one, values),
        lambda tensors: results(with_autocast(one_by_one), tensors, torch.float32),
        [value.float() for value in values],
        torch.bfloat16,
        roundings=0,
    )
    # With products in float32, autocast has no effect.
    plain = results(in_one_scan(torch.float32), values, torch.float32)
    for actual, expected in zip(
        results(with_autocast(in_one_scan(torch.float32)), values, torch.float32), plain, strict=True
    ):
        assert torch.equal(actual, expected)


def test_16_bit_inputs_give_16_bit_gradients_and_float32_states() -> None:
    x, *weights = values_of(2, 5, 2, 3, 4)
    bf16_x = x.bfloat16().requires_grad_()
    states = gru_bank(bf16_x, *(weight.float() for weight in weights), torch.bfloat16)
    assert states.dtype == torch.float32
    (gradient,) = torch.autograd.grad(states.sum(), bf16_x)
    assert gradient.dtype == torch.bfloat16


def test_results_are_bitwise_repeatable_and_inputs_unchanged() -> None:
    values = values_of(3, 30, 5, 8, 8)
    before = [value.clone() for value in values]
    first, second = results(in_one_scan(), values), results(in_one_scan(), values)
    for actual, expected in zip((*first, *before), (*second, *values), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("precision", ["ieee", "bf16"])
def test_float32_setting_of_the_caller_is_restored(precision: str) -> None:
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    try:
        setting.fp32_precision = precision
        results(in_one_scan(torch.float32), values_of(1, 3, 2, 3, 4), torch.float32)
        assert setting.fp32_precision == precision
    finally:
        setting.fp32_precision = before


def test_backward_pass_does_not_change_kept_gates() -> None:
    values = [value.requires_grad_() for value in values_of(3, 8, 2, 3, 5)]
    states = gru_bank(*values, torch.float64, recompute=False)
    first, second = (torch.autograd.grad(states.sum(), values, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("recompute", [True, False])
def test_only_arguments_result_and_requested_gates_are_saved(recompute: bool) -> None:
    values = [value.requires_grad_() for value in values_of(2, 20, 3, 5, 6)]
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        states = gru_bank(*values, torch.float64, recompute=recompute)
    gates = 0 if recompute else 4 * states.nbytes
    assert sum(saved.values()) == sum(tensor.nbytes for tensor in (*values, states)) + gates


@pytest.mark.parametrize(
    ("size", "product", "recompute"),
    pairwise([(1, 1, 1, 1, 1), (3, 4, 2, 3, 5)], [torch.float32, torch.bfloat16], [True, False]),
)
def test_operator_passes_opcheck(size: tuple[int, ...], product: torch.dtype, recompute: bool) -> None:
    values = [value.float().requires_grad_() for value in values_of(*size)]
    bf16_x = values[0].bfloat16().detach().requires_grad_()
    torch.library.opcheck(gru_bank_operator, (*values, product, False, recompute))
    torch.library.opcheck(gru_bank_operator, (bf16_x, *values[1:], product, False, recompute))


def test_flops_include_only_computed_products() -> None:
    values = [value.requires_grad_() for value in values_of(2, 5, 3, 4, 4)]
    product = 2 * 2 * 5 * 3 * 12 * 4  # with the inputs, and as many with the states
    for recompute, times in ((True, 8), (False, 6)):
        with FlopCounterMode(display=False) as counter:
            gru_bank(*values, torch.float64, recompute=recompute).sum().backward()
        assert counter.get_total_flops() == times * product


@pytest.mark.compile
@pytest.mark.parametrize("recompute", [True, False])
def test_compiled_results_equal_eager_results(recompute: bool) -> None:
    values = values_of(2, 5, 3, 4, 4)

    def doubled(*inputs: Tensor) -> Tensor:
        return gru_bank(2 * inputs[0], *inputs[1:], torch.float64, recompute=recompute).tanh()

    compiled = torch.compile(doubled, fullgraph=True, dynamic=False)
    assert_close(results(compiled, values), results(doubled, values))


WRONG = {
    "x": (2, 3, 4),
    "w_ih": (2, 12, 4),
    "w_hh": (2, 15, 4),
    "b_ih": (2, 4),
    "b_hh": (1, 12),
}


@pytest.mark.parametrize(("name", "shape"), WRONG.items())
def test_mismatched_shapes_raise(name: str, shape: tuple[int, ...]) -> None:
    names = ("x", "w_ih", "w_hh", "b_ih", "b_hh")
    values = dict(zip(names, values_of(2, 3, 2, 3, 4), strict=True)) | {name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match="must be"):
        gru_bank(*values.values(), torch.float64)
