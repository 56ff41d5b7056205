"""Compiled gradients equal eager ones for all parameters, several batch sizes and both precisions."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import free_symbols

from pgat_fast import Config, build_model, load_config
from pgat_fast.model.optimized.pgat import FastPGAT
from pgat_fast.model.precision import Precision, float32_products_in, products_in
from pgat_kernels.conditioning import SPREADS, moved_by_rounding, relative_errors
from tests.pgat_fast.model.variants import NO_BODIES, config_of, inputs_of, loss_of

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


def gradients(model: nn.Module, config: Config, inputs: tuple[Tensor, ...], precision: Precision) -> list[Tensor]:
    """Return loss and gradients, with the same dropout masks in every call."""
    torch.manual_seed(2)
    model.zero_grad()
    with products_in(precision, CPU):
        result = model(*inputs)
    loss = loss_of(config, result)
    with float32_products_in(precision, CPU):
        loss.backward()
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters())]


def beyond(names: list[str], errors: list[float], movements: list[float], epsilon: float) -> list[str]:
    """Return the gradients whose error rounding does not explain."""
    bounds = [2 * SPREADS * movement + EPSILONS * epsilon for movement in movements]
    return [
        f"{name}: {error:.2g}, {bound:.2g} allowed"
        for name, error, bound in zip(names, errors, bounds, strict=True)
        if not error <= bound
    ]


def spread(
    model: nn.Module, config: Config, inputs: tuple[Tensor, ...], precision: Precision, expected: list[Tensor]
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
        assert not beyond(names, errors, movements, epsilon), f"batch of {batch}"


@pytest.mark.compile
@pytest.mark.parametrize("dynamic", [None, True])
def test_number_of_steps_is_never_symbolic(dynamic: bool | None) -> None:
    """torch makes a size symbolic once it changes; inductor cannot order the strides of a symbolic number of steps."""
    torch._dynamo.reset()
    symbolic: list[set[int]] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        values = [node.meta["example_value"] for node in graph.graph.find_nodes(op="placeholder")]
        shapes = [value.shape for value in values if isinstance(value, Tensor)]
        symbolic.append({k for shape in shapes for k, size in enumerate(shape) if free_symbols(size)})
        return graph.forward

    for seq_len, batch in ((7, 1), (5, 1), (5, 2), (5, 3)):
        config = load_config(NO_BODIES | {"seq_len": seq_len})
        model = build_model(config, backend="torch").eval()
        torch.compile(model, dynamic=dynamic, backend=record)(*inputs_of(config, batch=batch))
    assert symbolic
    assert set().union(*symbolic) == {0}, "the number of windows may be symbolic"


@pytest.mark.compile
@pytest.mark.timeout(1800)  # compiles three models
@pytest.mark.parametrize("dynamic", [None, False])
def test_models_of_two_lengths_are_compiled_in_one_process(dynamic: bool | None) -> None:
    """The user's own `torch.compile(model)`, in training, first with the sizes that inductor of torch 2.13 refused."""
    torch._dynamo.reset()
    for seq_len, batch in ((7, 1), (5, 1), (5, 2)):
        config = load_config(NO_BODIES | {"seq_len": seq_len, "e_layers": 1, "dropout": 0.0})
        torch.manual_seed(0)
        model = build_model(config, backend="torch").train()
        inputs = inputs_of(config, batch=batch)
        expected = gradients(model, config, inputs, "highest")
        movements = spread(model, config, inputs, "highest", expected)
        compiled = torch.compile(model, dynamic=dynamic)
        errors = relative_errors(gradients(compiled, config, inputs, "highest"), expected)
        names = ["loss", *(name for name, _ in model.named_parameters())]
        assert not beyond(names, errors, movements, torch.finfo(torch.float32).eps), f"{seq_len} steps, {batch} windows"
