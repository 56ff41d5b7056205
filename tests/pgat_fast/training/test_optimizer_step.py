"""Optimizer steps: those that are applied and those that are left out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgat_fast import build_model, load_config
from pgat_fast.config import Config
from pgat_fast.data.windows import Batch
from pgat_fast.model.precision import Precision, float32_products_in, product_dtype
from pgat_fast.training.optimizer_step import SMALLEST_SCALE, OptimizerStep, Totals, make_optimizer

CPU = torch.device("cpu")


class Affine(nn.Module):
    """A model of two numbers with the call signature of the forecaster."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, *_: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.weight * x + self.bias, {}


def a_step(precision: Precision = "highest", **training: Any) -> OptimizerStep:
    config = Config.model_validate({"training": {"learning_rate": 0.1, "clip_grad_norm": None} | training})
    model = Affine()
    return OptimizerStep(model, make_optimizer(model, config.training), config.model, config.training, precision, CPU)


def batch(x: float, y: float = 0.0) -> Callable[[], Batch]:
    return lambda: Batch(torch.tensor([x]), *(torch.zeros(1) for _ in range(3)), torch.tensor([y]))


def take(step: OptimizerStep, *batches: Callable[[], Batch], context: object = None) -> None:
    step.apply(step.accumulate(batches), len(batches), context)


def everything(step: OptimizerStep) -> list[Tensor]:
    """Return copies of the weights and the optimizer state."""
    states = [value for state in step.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*step.model.parameters(), *states]]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_step_has_gradient_of_mean_loss_of_its_batches() -> None:
    step = a_step()
    losses = step.accumulate([batch(1.0), batch(2.0), batch(3.0)])
    assert losses == 1 + 4 + 9
    assert step.model.weight.grad == pytest.approx(2 * (1 + 4 + 9) / 3)  # d (w x)^2 / dw at w = 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_nonfinite_step_changes_neither_weights_nor_optimizer_state(bad: float) -> None:
    step = a_step()
    take(step, batch(1.0))
    before = everything(step)
    take(step, batch(1.0), batch(bad), context="the bad one")
    assert step.flags.raised() == ["the bad one"]
    assert same(everything(step), before)
    assert step.totals.values.tolist() == [1.0, 1.0, 1.0], "one batch counted, one step left out"


def test_no_step_is_applied_after_nonfinite_one_until_host_reacts() -> None:
    step = a_step()
    take(step, batch(float("nan")))
    before = everything(step)
    take(step, batch(1.0))
    assert same(everything(step), before)


def test_allowed_nonfinite_step_does_not_block_later_ones() -> None:
    step = a_step(nonfinite_steps=3)
    take(step, batch(float("nan")))
    before = everything(step)
    take(step, batch(1.0))
    assert not same(everything(step), before)
    assert step.totals.values.tolist() == [1.0, 1.0, 1.0]


def test_flags_are_returned_once() -> None:
    step = a_step(nonfinite_steps=3)
    for number, x in enumerate([1.0, float("nan"), 2.0, float("inf")]):
        take(step, batch(x), context=number)
    assert step.flags.raised(wait=True) == [1, 3]
    assert step.flags.raised(wait=True) == []


def test_totals_of_snapshot_do_not_change() -> None:
    totals = Totals(CPU)
    totals.add(torch.tensor(3.0, dtype=torch.float64), 2, torch.tensor(True))
    snapshot = totals.values
    totals.add(torch.tensor(5.0, dtype=torch.float64), 1, torch.tensor(True))
    assert snapshot.tolist() == [3.0, 2.0, 0.0]
    assert totals.values.tolist() == [8.0, 3.0, 0.0]


@pytest.mark.parametrize(("limit", "norm"), [(1.0, 1.0), (100.0, 10.0)])
def test_clipping_scales_all_gradients_if_norm_is_above_limit(limit: float, norm: float) -> None:
    step = a_step(clip_grad_norm=limit)
    step.optimizer.zero_grad()
    step.model.weight.grad, step.model.bias.grad = torch.tensor([6.0]), torch.tensor([8.0])
    step.apply(torch.zeros((), dtype=torch.float64), 1)
    gradients = torch.cat([step.model.weight.grad, step.model.bias.grad])
    assert gradients.tolist() == pytest.approx([0.6 * norm, 0.8 * norm], rel=1e-5)  # torch divides by norm + 1e-6
    assert step.norm == 10.0, "the recorded norm is the one before clipping"


def test_float16_overflow_lowers_loss_scale_and_leaves_step_out() -> None:
    step = a_step("fp16")
    scale = step.scaler.get_scale()
    before = everything(step)
    take(step, batch(1e3))  # the gradient, 2e6 times the scale of 65,536, is beyond float32 only when scaled
    take(step, batch(1e30))
    assert step.scaler.get_scale() < scale
    assert len(step.flags.raised()) == 1
    assert not same(everything(step)[:2], before[:2]), "the first step was good"


@pytest.mark.parametrize("precision", ["highest", "high", "bf16", "fp16"])
@pytest.mark.parametrize("combiner", ["batched", "hierarchical"])
def test_parameters_gradients_and_loss_stay_float32_in_mixed_precision(
    tiny: list[str], combiner: str, precision: Precision
) -> None:
    parts = ["use_mixture_decoder=true", "use_stochastic_learner=true", "use_hierarchical_mapping=true"]
    config = load_config(None, [*tiny, f"model.combiner={combiner}", "celestial_fusion_layers=1", *parts])
    torch.manual_seed(0)
    model = build_model(config).train()
    step = OptimizerStep(model, make_optimizer(model, config.training), config.model, config.training, precision, CPU)
    values = torch.randn(2, 6, 118), torch.rand(2, 6, 4), torch.randn(2, 5, 118), torch.rand(2, 5, 4)
    random_batch = Batch(*values, torch.randn(2, 2, 4))
    dtypes = set()
    hook = model.readout.register_forward_hook(lambda _, inputs, output: dtypes.add(output.dtype))
    loss = step.loss(random_batch)
    hook.remove()
    assert dtypes == {product_dtype(precision) or torch.float32}, "products are taken in the type that was asked for"
    assert loss.dtype == torch.float32
    overflows = 0
    take(step, lambda: random_batch)
    while step.flags.raised():  # the float16 scale starts high and is halved until the gradients fit
        overflows += 1
        take(step, lambda: random_batch)
    assert step.scaler.get_scale() >= SMALLEST_SCALE
    assert overflows == 0 or precision == "fp16"
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize(("precision", "float32"), [("highest", None), ("high", "tf32"), ("bf16", None)])
def test_backward_pass_uses_requested_float32_precision_without_autocast(
    precision: Precision, float32: str | None
) -> None:
    onednn: Any = torch.backends.mkldnn
    with float32_products_in("highest", CPU):
        exact = onednn.matmul.fp32_precision
    step, before, observed = a_step(precision), onednn.matmul.fp32_precision, []
    step.model.weight.register_hook(
        lambda gradient: observed.append((onednn.matmul.fp32_precision, torch.is_autocast_enabled("cpu")))
    )
    take(step, batch(1.0), batch(2.0))
    assert observed == [(float32 or exact, False)] * 2
    assert onednn.matmul.fp32_precision == before

    def fail() -> Batch:
        raise MemoryError

    with pytest.raises(MemoryError):
        take(step, batch(1.0), fail)
    assert onednn.matmul.fp32_precision == before


def test_gradients_keep_their_tensors_and_values_with_graphs() -> None:
    config = Config.model_validate({"training": {"learning_rate": 0.1}})
    model = Affine()
    optimizer = make_optimizer(model, config.training)
    graphs = OptimizerStep(model, optimizer, config.model, config.training, "highest", CPU, graphs=True)
    plain = a_step(clip_grad_norm=1.0)
    gradients = [parameter.grad for parameter in graphs.parameters]
    for batches in ([batch(1.0), batch(2.0)], [batch(3.0)]):
        take(graphs, *batches)
        take(plain, *batches)
        assert all(parameter.grad is gradient for parameter, gradient in zip(graphs.parameters, gradients, strict=True))
        assert same(everything(graphs), everything(plain))


def test_losses_in_bfloat16_and_float16_equal_float32_up_to_precision(tiny: list[str]) -> None:
    config = load_config(None, [*tiny, "model.dropout=0"])
    torch.manual_seed(0)
    model = build_model(config).eval()
    values = torch.randn(2, 6, 118), torch.rand(2, 6, 4), torch.randn(2, 5, 118), torch.rand(2, 5, 4)
    losses = []
    precisions: tuple[Precision, ...] = ("highest", "bf16", "fp16")
    for precision in precisions:
        step = OptimizerStep(
            model, make_optimizer(model, config.training), config.model, config.training, precision, CPU
        )
        losses.append(
            step.loss(Batch(*values, torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1)))).item()
        )
    # 8 and 11 bits of mantissa, through about twenty layers.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[2] == pytest.approx(losses[0], rel=0.01)
