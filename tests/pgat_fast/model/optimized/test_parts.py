"""Fast phase-aware processor, body nodes and body fusion: equality with the reference, and memory kept."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.pgat_fast.model.by_hand import EXACT
from tests.pgat_fast.model.optimized.parts import Case, fusion, nodes, phase
from tests.pgat_fast.model.results import as_tuple, assert_close, assert_same_bits, bytes_kept, outputs_and_gradients

CASES = [
    *map(nodes, (1, 8, 13, 70)),
    *(fusion(*sizes) for sizes in ((6, 1), (6, 4), (13, 8), (70, 2), (70, 5))),
    *(phase(n, *s) for n, s in zip((1, 8, 2, 4), product(("named", "positional"), ("computed", "zero")), strict=True)),
]
EACH = {"nodes": nodes(26), "fusion": fusion(26, 2, 0.4), "phase": phase(8, "named", "computed")}
each = pytest.mark.parametrize("case", EACH.values(), ids=EACH)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.fast.__name__}{case.arguments}")
def test_outputs_and_gradients_equal_the_reference(case: Case, shape: tuple[int, int]) -> None:
    reference, fast = case.models()
    values = case.values(*shape)
    assert_close(outputs_and_gradients(fast, *values), outputs_and_gradients(reference, *values))


@each
def test_results_without_gradients_equal_the_reference(case: Case) -> None:
    reference, fast = case.models()
    with torch.no_grad():
        for actual, expected in zip(as_tuple(fast(*case.values())), as_tuple(reference(*case.values())), strict=True):
            assert not actual.requires_grad
            assert torch.allclose(actual, expected, rtol=0, atol=EXACT)


@each
def test_training_is_bitwise_repeatable(case: Case) -> None:
    _, fast = case.models()
    fast.float().train()
    runs = []
    for _ in range(2):
        torch.manual_seed(2)
        runs.append(outputs_and_gradients(fast, *(x.float() for x in case.values(3, 20))))
    assert_same_bits(*runs)


@each
def test_parameters_of_functional_call_are_used_in_both_passes(case: Case) -> None:
    class Called(nn.Module):
        def forward(self, *inputs: Tensor) -> Any:
            replacements = {name.replace("/", "."): parameter for name, parameter in self.named_parameters()}
            return functional_call(other, replacements, inputs)

    reference, fast = case.models()
    other = case.fast(*case.arguments).double().eval()
    called = Called()
    for name, parameter in fast.named_parameters():
        called.register_parameter(name.replace(".", "/"), nn.Parameter(parameter.detach()))
    actual = {name.replace("/", "."): x for name, x in outputs_and_gradients(called, *case.values()).items()}
    assert_close(actual, outputs_and_gradients(reference, *case.values()))


@pytest.mark.parametrize("name", ["nodes", "fusion"])
@pytest.mark.parametrize("autocast", [False, True])
def test_dtypes_equal_the_reference(name: str, autocast: bool) -> None:
    case = EACH[name]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        actual, expected = (
            [y.dtype for y in as_tuple(model.float()(*(x.float() for x in case.values())))] for model in case.models()
        )
    assert actual == expected


KEPT = {
    "nodes": 5 * 26 + 13 * 13,  # state, three tensors of the market network, x of the aspects, and their matrix
    "fusion": 26 + 13 * 26,  # state and bodies
    "phase": 2 * 13 * 32,  # normalised features and recurrent states
}
"""Numbers that a fast module may keep for the backward pass for each timestep."""


@pytest.mark.parametrize("name", EACH)
def test_numbers_kept_for_the_backward_pass_are_bounded(name: str) -> None:
    def kept(model: nn.Module, steps: int) -> int:
        values = [x.requires_grad_() for x in EACH[name].values(1, steps)]
        return bytes_kept(lambda: model(*values), ignored=values if name == "phase" else ()) // 8

    reference, fast = ((kept(model.train(), 30) - kept(model.train(), 20)) / 10 for model in EACH[name].models())
    assert fast <= KEPT[name]
    assert reference > 3 * fast
