"""Fast body nodes and fusion: equality with the reference, and memory kept."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from pgat_fast.model.optimized.body_nodes import FastBodyFusion, FastBodyNodes
from pgat_fast.model.reference.body_nodes import BodyFusion, BodyNodes
from pgat_kernels.conditioning import ROUNDINGS
from tests.pgat_fast.model.by_hand import EXACT, normal, randomize
from tests.rounding import assert_right_up_to_rounding

Pair = tuple[nn.Module, nn.Module]
SHAPES = [(1, 1), (3, 7)]


def nodes_of(width: int) -> Pair:
    """Return the reference and the fast body nodes with the same random parameters."""
    reference = randomize(BodyNodes(width))
    return reference, same(FastBodyNodes(width), reference)


def fusions_of(width: int, n_heads: int, dropout: float = 0.0) -> Pair:
    reference = randomize(BodyFusion(width, n_heads, dropout))
    return reference, same(FastBodyFusion(width, n_heads, dropout), reference)


def same(module: nn.Module, other: nn.Module) -> nn.Module:
    module.double().eval().load_state_dict(other.state_dict())
    return module


def results(module: Callable[..., Tensor | tuple[Tensor, ...]], *values: Tensor) -> list[Tensor]:
    """Return outputs and gradients of inputs and parameters, in the dtype of the parameters."""
    parameters = [] if not isinstance(module, nn.Module) else list(module.parameters())
    dtype = parameters[0].dtype if parameters else values[0].dtype
    inputs = [value.detach().to(dtype).requires_grad_() for value in values]
    outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [normal(*output.shape, seed=20 + k).to(output.dtype) for k, output in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, [*inputs, *parameters], upstream)
    return [*(output.detach() for output in outputs), *gradients]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = EXACT) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [1, 8, 13, 70])
def test_aspects_and_features_equal_the_reference(width: int, shape: tuple[int, int]) -> None:
    reference, fast = nodes_of(width)
    e = normal(*shape, width)
    assert_close(results(fast, e), results(reference, e))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("width", "n_heads"), [(6, 1), (6, 4), (13, 8), (70, 2), (70, 5)])
def test_fusion_equals_the_reference(width: int, n_heads: int, shape: tuple[int, int]) -> None:
    reference, fast = fusions_of(width, n_heads)
    values = normal(*shape, width), normal(*shape, 13, width, seed=4)
    assert_close(results(fast, *values), results(reference, *values))


def test_outputs_are_contiguous_and_aspects_symmetric() -> None:
    _, fast = nodes_of(8)
    adjacency, features = fast(normal(2, 3, 8))
    assert adjacency.is_contiguous()
    assert features.is_contiguous()
    assert torch.equal(adjacency, adjacency.transpose(2, 3))
    assert bool((adjacency.diagonal(dim1=2, dim2=3) == 1).all())


@pytest.mark.parity
@pytest.mark.parametrize("part", ["nodes", "fusion"])
@pytest.mark.parametrize("autocast", [False, True])
def test_rounding_errors_are_explained_by_the_reference(part: str, autocast: bool) -> None:
    width = 52
    reference, fast = nodes_of(width) if part == "nodes" else fusions_of(width, 4)
    values = [normal(3, 40, width)] if part == "nodes" else [normal(3, 40, width), normal(3, 40, 13, width, seed=4)]
    exact = results(reference, *values)
    moving = [tensor.detach().float() for tensor in (*values, *reference.parameters())]

    def rounded(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
        """Return the results of `module` for rounded values and parameters."""
        with torch.no_grad():
            for parameter, tensor in zip(module.float().parameters(), tensors[len(values) :], strict=True):
                parameter.copy_(tensor)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return results(module, *tensors[: len(values)])

    dtype, roundings = (torch.bfloat16, 1e-4) if autocast else (torch.float32, ROUNDINGS)
    actual = rounded(fast, moving)
    assert_right_up_to_rounding(actual, exact, lambda tensors: rounded(reference, tensors), moving, dtype, roundings)


def test_dtypes_equal_the_reference() -> None:
    for (reference, fast), inputs in (
        (nodes_of(8), [normal(2, 3, 8).float()]),
        (fusions_of(8, 2), [normal(2, 3, 8).float(), normal(2, 3, 13, 8).float()]),
    ):
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                actual, expected = fast.float()(*inputs), reference.float()(*inputs)
            for a, b in zip(actual, expected, strict=True):
                assert a.dtype == b.dtype


@pytest.mark.parametrize("part", ["nodes", "fusion"])
def test_values_kept_for_the_backward_pass_are_bounded(part: str) -> None:
    width = 26
    reference, fast = nodes_of(width) if part == "nodes" else fusions_of(width, 2)

    def kept(module: nn.Module, steps: int) -> int:
        """Return the number of values in the distinct storages kept."""
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
            return tensor

        e, bodies = (normal(1, steps, *shape).requires_grad_() for shape in ((width,), (13, width)))
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = module(e) if part == "nodes" else module(e, bodies)
        del outputs
        return sum(storages.values())

    def per_timestep(module: nn.Module) -> float:
        return (kept(module, 30) - kept(module, 20)) / 10

    # Nodes: state, three tensors of the market network, x of the aspects and their matrix. Fusion: state and bodies.
    assert per_timestep(fast) <= (5 * width + 13 * 13 if part == "nodes" else width + 13 * width)
    assert per_timestep(reference) > 3 * per_timestep(fast)


@pytest.mark.parametrize("part", ["nodes", "fusion"])
def test_gradients_reach_parameters_replaced_by_functional_call(part: str) -> None:
    _, fast = nodes_of(8) if part == "nodes" else fusions_of(8, 2)
    replacements = {name: (2 * value.detach()).requires_grad_() for name, value in fast.named_parameters()}
    values = [normal(2, 3, 8)] if part == "nodes" else [normal(2, 3, 8), normal(2, 3, 13, 8, seed=4)]
    outputs = functional_call(fast, replacements, tuple(values))
    total = sum(output.square().sum() for output in (outputs if part == "nodes" else [outputs]))
    actual = torch.autograd.grad(total, list(replacements.values()))
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter *= 2
    outputs = fast(*values)
    total = sum(output.square().sum() for output in (outputs if part == "nodes" else [outputs]))
    assert_close(list(actual), list(torch.autograd.grad(total, list(fast.parameters()))))


def test_dropout_of_the_fusion_acts_only_in_training() -> None:
    reference, fast = fusions_of(8, 2, dropout=0.4)
    values = normal(2, 3, 8), normal(2, 3, 13, 8, seed=4)
    assert_close([fast(*values)], [reference(*values)])
    fast.train()
    torch.manual_seed(0)
    first, second = fast(*values), fast(*values)
    torch.manual_seed(0)
    assert torch.equal(fast(*values), first)
    assert not torch.allclose(first, second)
    fast.attention.dropout = 0.0
    assert_close([fast(*values)], [reference(*values)])


def test_dropout_is_distributed_as_in_the_reference() -> None:
    draws = 20_000
    reference, fast = (fusion.train() for fusion in fusions_of(6, 2, dropout=0.4))
    e = normal(1, 1, 6).expand(1, draws, 6)  # every copy has its own mask
    bodies = normal(1, 1, 13, 6, seed=4).expand(1, draws, 13, 6)
    torch.manual_seed(2)
    with torch.no_grad():
        actual, expected = fast(e, bodies)[0], reference(e, bodies)[0]
    spread = expected.var(dim=0)
    assert ((actual.mean(dim=0) - expected.mean(dim=0)).abs() < 5 * (2 * spread / draws) ** 0.5).all()
    assert ((actual.T.cov() - expected.T.cov()).abs() < 5 * 2 * spread.max() / draws**0.5).all()
    assert float(spread.min()) > 1e-5


def test_recomputation_uses_the_same_masks() -> None:
    _, fast = fusions_of(6, 2, dropout=0.4)
    fast.train()
    direction, values = normal(1, 2, 6, seed=8), [normal(1, 2, 6), normal(1, 2, 13, 6, seed=4)]

    def output(step: float) -> Tensor:
        torch.manual_seed(1)
        return fast(values[0] + step * direction, values[1]).sum()

    e = values[0].clone().requires_grad_()
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(fast(e, values[1]).sum(), e)
    with torch.no_grad():
        slope = (output(1e-5) - output(-1e-5)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-6)


def test_results_are_bitwise_repeatable() -> None:
    _, nodes = nodes_of(13)
    _, fusion = fusions_of(13, 2)
    e, bodies = normal(2, 5, 13), normal(2, 5, 13, 13, seed=4)
    for module, values in ((nodes.float(), [e]), (fusion.float(), [e, bodies])):
        for first, second in itertools.pairwise(results(module, *values) for _ in range(2)):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_results_without_gradients_equal_the_reference() -> None:
    reference, fast = nodes_of(8)
    with torch.no_grad():
        actual, expected = fast(normal(2, 3, 8)), reference(normal(2, 3, 8))
    assert_close(list(actual), list(expected))
    assert not any(tensor.requires_grad for tensor in actual)


@pytest.mark.compile
def test_compiled_results_equal_eager_ones() -> None:
    class Both(nn.Module):
        def __init__(self, nodes: nn.Module, fusion: nn.Module) -> None:
            super().__init__()
            self.nodes, self.fusion = nodes, fusion

        def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
            adjacency, bodies = self.nodes(e)
            return adjacency, self.fusion(e, bodies)

    models = [Both(*pair) for pair in zip(nodes_of(6), fusions_of(6, 2), strict=True)]
    expected = results(models[0], normal(2, 3, 6))
    models[1].compile(fullgraph=True, dynamic=False, backend="aot_eager")  # for inductor see `test_golden_compiled`
    assert_close(results(models[1], normal(2, 3, 6)), expected)


@pytest.mark.compile
def test_compiled_dropout_is_one_graph() -> None:
    _, fast = fusions_of(6, 2, dropout=0.4)
    fast.train().compile(fullgraph=True, dynamic=False, backend="aot_eager")
    values = normal(1, 3, 6), normal(1, 3, 13, 6, seed=4)
    first, second = results(fast, *values), results(fast, *values)
    assert not torch.allclose(first[0], second[0])
    assert all(bool(tensor.isfinite().all()) for tensor in (*first, *second))
