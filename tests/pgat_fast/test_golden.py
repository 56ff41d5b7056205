"""Our models equal the existing model: outputs, intermediate results and all gradients."""

from collections.abc import Collection
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from pgat_fast import build_model
from pgat_fast.compat import Model, from_original_layout
from pgat_fast.model.forecast import Mixture
from pgat_kernels.conditioning import SPREADS, rounding_spread
from tests import golden

BADLY_CONDITIONED = ("everything_small", "no_celestial_small")
"""Cases with row sums so near zero that any float32 program keeps only three or four digits of some gradients."""

STAGES = {
    "phase_aware_processor": "graph_builder.phase",
    "enc_embedding": "graph_builder.embedding",
    "dec_embedding": "decoder_embedding",
    "market_context_encoder": "graph_builder.market_context",
    "traditional_graph_learner": "graph_builder.learner",
    "celestial_combiner": "graph_builder.combiner",
    "dynamic_spatiotemporal_encoder": "readout",
    "decoder_layers.0": "decoder.0",
    "decoder_layers.1": "decoder.1",
    "mixture_decoder": "head",
    "hierarchical_mapper": "mapping.node_projection",
}
"""Module of the existing model -> our module with the same result."""


def as_list(result: Any) -> list[Tensor]:
    return [part for part in result if part is not None] if isinstance(result, tuple) else [result]


def run(case: golden.Case, dtype: torch.dtype, backend: str) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return the outputs, the weights used, and the results of modules and diagnostics by name."""
    model = build_model(case.config, backend=backend).to(dtype).eval()
    returned: dict[str, Any] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: returned.__setitem__(name, output)

    modules = dict(model.named_modules())
    for our_name in {*STAGES.values(), "graph_builder.body_nodes"} & set(modules):
        modules[our_name].register_forward_hook(keep(our_name))
    state = case.state(dtype)
    forecast, diagnostics = functional_call(model, from_original_layout(state, case.config), case.inputs(dtype))
    return as_list(forecast), state, returned | diagnostics


@cache
def spread_in_float32(name: str) -> tuple[list[float], dict[str, float]]:
    """Return how far outputs and gradients of the reference move in float32 if weights and inputs move by rounding.

    Five draws: one sum near zero affects all these gradients together, and the worst of three draws is sometimes much
    smaller than another draw.
    """
    case = golden.load(name)
    model = build_model(case.config, backend="reference").eval()

    def compute(tensors: list[Tensor]) -> list[Tensor]:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        state, inputs = dict(zip(case.shapes, leaves, strict=False)), tuple(leaves[len(case.shapes) :])
        outputs = as_list(functional_call(model, from_original_layout(state, case.config), inputs)[0])
        return outputs + list(torch.autograd.grad(case.probed(outputs), [state[key] for key in case.gradients]))

    moving = [*case.state(torch.float32).values(), *case.inputs(torch.float32)]
    spread = rounding_spread(compute, moving, draws=5)
    count = len(case.outputs)
    return spread[:count], dict(zip(case.gradients, spread[count:], strict=True))


def comparisons(slow: Collection[tuple[str, str]]) -> list[Any]:
    """Return case and backend of each comparison; those in `slow` are not in `make test`."""
    rows = product(golden.CASES, ("reference", "torch"))
    return [pytest.param(*row, marks=pytest.mark.slow if row in slow else ()) for row in rows]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "backend"), comparisons([*product(golden.CASES, ["reference"]), ("everything_small", "torch")])
)
def test_float32_outputs_and_gradients_equal_existing_model(name: str, backend: str) -> None:
    case = golden.load(name)
    outputs, state, _ = run(case, torch.float32, backend)
    of_outputs, of_gradients = spread_in_float32(name) if name in BADLY_CONDITIONED else (None, None)
    case.check_outputs(outputs, of_outputs)
    case.probed(outputs).backward()
    case.check_gradients({key: tensor.grad for key, tensor in state.items()}, of_gradients)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["batched_small", "no_celestial_small"])
def test_wrong_gradients_are_rejected(name: str) -> None:
    """Check that gradients 1 % too large are rejected in float32, except where rounding explains that much."""
    case = golden.load(name)
    outputs, state, _ = run(case, torch.float32, "torch")
    case.probed(outputs).backward()
    spread = spread_in_float32(name)[1] if name in BADLY_CONDITIONED else {}
    wrong_gradients = {key: None if tensor.grad is None else 1.01 * tensor.grad for key, tensor in state.items()}
    with pytest.raises(AssertionError) as raised:
        case.check_gradients(wrong_gradients, spread)
    rejected = {line.split(":")[0] for line in str(raised.value).splitlines()}
    largest = max(norm for norm, _ in case.gradients.values())
    explained = {key for key, (norm, _) in case.gradients.items() if norm < 1e-12 * largest}
    explained |= {key for key, moved in spread.items() if SPREADS * moved > 5e-3}
    assert rejected >= set(case.gradients) - explained
    assert len(rejected) > 0.8 * len(case.gradients)


@pytest.mark.parametrize("name", golden.CASES)
def test_intermediate_results_equal_existing_model(name: str) -> None:
    case = golden.load(name)
    _, _, returned = run(case, torch.float64, "reference")
    compared = set()

    def compare(key: str, actual: Tensor) -> None:
        expected = case.intermediates[key]
        assert np.abs(actual.detach().numpy() - expected.reshape(actual.shape)).max() < 1e-5, key
        compared.add(key)

    for original_name, our_name in STAGES.items():
        if f"{original_name}.0" in case.intermediates and our_name in returned:
            for i, result in enumerate(as_list(returned[our_name])):
                compare(f"{original_name}.{i}", result)
    if "celestial_nodes.0" in case.intermediates:
        dynamic, features = returned["graph_builder.body_nodes"]
        astrological = build_model(case.config, backend="reference").get_buffer("graph_builder.astrological").double()
        compare("celestial_nodes.0", astrological.expand(dynamic.shape))
        compare("celestial_nodes.1", dynamic)
        compare("celestial_nodes.2", features)
    # Without a celestial graph the market context is not used.
    not_used = {"market_context_encoder.0"} if name == "no_celestial_small" else set()
    assert set(case.intermediates) - compared == not_used


@pytest.mark.parametrize(("name", "backend"), comparisons([("hierarchical_small", "reference")]))
def test_float64_outputs_and_gradients_of_compat_model_equal_existing_model(name: str, backend: str) -> None:
    case = golden.load(name)
    model = Model(case.settings | {"backend": backend}).double().eval()
    model.load_state_dict({key: tensor.detach() for key, tensor in case.state(torch.float64).items()})
    forecast, diagnostics = model(*case.inputs(torch.float64))
    assert isinstance(forecast, Mixture) == (name == "everything_small")
    assert diagnostics["adjacency"].shape[-1] == case.config.model.nodes
    outputs = as_list(forecast)
    case.check_outputs(outputs)
    case.probed(outputs).backward()
    case.check_gradients({key: tensor.grad for key, tensor in model.named_parameters()})
