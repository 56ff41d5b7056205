"""Compiled gradients equal eager ones for all parameters, several batch sizes and both precisions."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pgat_fast import Config, build_model
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.model.precision import Precision, float32_products_in, products_in
from pgat_kernels.conditioning import SPREADS, moved_by_rounding, relative_errors
from tests.pgat_fast.model.variants import config_of, inputs_of, loss_of

CPU = torch.device("cpu")
EPSILONS = 16.0
"""Epsilons of the products' dtype by which a gradient may differ beyond the spread: both programs sum some hundred
terms, in different orders."""

CASES: list[tuple[str, Precision, bool]] = [
    ("batched", "highest", True),
    ("batched", "bf16", False),
    ("hierarchical", "bf16", True),
]
"""Combiner, precision, and whether dropout is on. With the fourth row, which `test_golden_compiled` compares with the
existing model (hierarchical, highest, without dropout), any two values occur together."""


def gradients(model: FastPGAT, config: Config, inputs: tuple[Tensor, ...], precision: Precision) -> list[Tensor]:
    """Return loss and gradients, with the same dropout masks in every call."""
    torch.manual_seed(2)
    model.zero_grad()
    with products_in(precision, CPU):
        result = model(*inputs)
    loss = loss_of(config, result)
    with float32_products_in(precision, CPU):
        loss.backward()
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters())]


def spread(
    model: FastPGAT, config: Config, inputs: tuple[Tensor, ...], precision: Precision, expected: list[Tensor]
) -> list[float]:
    """Return how far rounding in the products' dtype moves each gradient: the worst of three draws."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    worst = [0.0] * len(expected)
    for _ in range(3):
        model.load_state_dict({name: moved_by_rounding(x.to(dtype), generator).float() for name, x in state.items()})
        values = [moved_by_rounding(x.to(dtype), generator).float() if k % 2 == 0 else x for k, x in enumerate(inputs)]
        errors = relative_errors(gradients(model, config, tuple(values), precision), expected)
        worst = [max(pair) for pair in zip(worst, errors, strict=True)]
    model.load_state_dict(state)
    return worst


@pytest.mark.compile
@pytest.mark.parametrize(("combiner", "precision", "training"), CASES)
def test_compiled_gradients_equal_eager_ones(combiner: str, precision: Precision, training: bool) -> None:
    config = config_of(combiner, dropout=0.1)
    torch.manual_seed(0)
    model = build_model(config, backend="torch").train(training)
    assert isinstance(model, FastPGAT)
    epsilon = torch.finfo(torch.bfloat16 if precision == "bf16" else torch.float32).eps
    names = ["loss", *(name for name, _ in model.named_parameters())]
    # Chunks of three timesteps for all batch sizes; the last chunk of one and of two windows is incomplete.
    execution = replace(model.execution, combiner_chunk=3)
    for batch in (1, 2, 3):
        inputs = inputs_of(config, batch=batch)
        model.set_execution(execution)
        expected = gradients(model, config, inputs, precision)
        movements = spread(model, config, inputs, precision, expected)
        model.set_execution(replace(execution, compiled=True))
        errors = relative_errors(gradients(model, config, inputs, precision), expected)
        bounds = [2 * SPREADS * movement + EPSILONS * epsilon for movement in movements]
        failures = [
            f"{name}: {error:.2g}, {bound:.2g} allowed"
            for name, error, bound in zip(names, errors, bounds, strict=True)
            if not error <= bound
        ]
        assert not failures, f"batch of {batch}: {failures}"
