"""Fast body nodes and fusion: properties of the results, rounding and dropout; for equality see `test_parts`."""

import pytest
import torch
from torch import Tensor, nn

from pgat_kernels.conditioning import ROUNDINGS
from tests.pgat_fast.model.by_hand import EXACT, normal
from tests.pgat_fast.model.optimized.parts import fusion, nodes
from tests.pgat_fast.model.results import outputs_and_gradients
from tests.rounding import assert_right_up_to_rounding


def test_outputs_are_contiguous_and_aspects_symmetric() -> None:
    _, fast = nodes(8).models()
    adjacency, features = fast(normal(2, 3, 8))
    assert adjacency.is_contiguous()
    assert features.is_contiguous()
    assert torch.equal(adjacency, adjacency.transpose(2, 3))
    assert bool((adjacency.diagonal(dim1=2, dim2=3) == 1).all())


@pytest.mark.parity
@pytest.mark.parametrize("part", ["nodes", "fusion"])
@pytest.mark.parametrize("autocast", [False, True])
def test_rounding_errors_are_explained_by_the_reference(part: str, autocast: bool) -> None:
    case = nodes(52) if part == "nodes" else fusion(52, 4)
    reference, fast = case.models()
    values = case.values(3, 40)
    exact = list(outputs_and_gradients(reference, *values).values())
    moving = [tensor.detach().float() for tensor in (*values, *reference.parameters())]

    def rounded(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
        """Return the results of `module` for rounded values and parameters."""
        with torch.no_grad():
            for parameter, tensor in zip(module.float().parameters(), tensors[len(values) :], strict=True):
                parameter.copy_(tensor)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return list(outputs_and_gradients(module, *tensors[: len(values)]).values())

    dtype, roundings = (torch.bfloat16, 1e-4) if autocast else (torch.float32, ROUNDINGS)
    actual = rounded(fast, moving)
    assert_right_up_to_rounding(actual, exact, lambda tensors: rounded(reference, tensors), moving, dtype, roundings)


def test_dropout_of_the_fusion_acts_only_in_training() -> None:
    reference, fast = fusion(8, 2, dropout=0.4).models()
    values = normal(2, 3, 8), normal(2, 3, 13, 8, seed=4)
    assert torch.allclose(fast(*values), reference(*values), rtol=0, atol=EXACT)
    fast.train()
    torch.manual_seed(0)
    first, second = fast(*values), fast(*values)
    torch.manual_seed(0)
    assert torch.equal(fast(*values), first)
    assert not torch.allclose(first, second)
    fast.attention.dropout = 0.0
    assert torch.allclose(fast(*values), reference(*values), rtol=0, atol=EXACT)


def test_dropout_is_distributed_as_in_the_reference() -> None:
    draws = 20_000
    reference, fast = (model.train() for model in fusion(6, 2, dropout=0.4).models())
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
    _, fast = fusion(6, 2, dropout=0.4).models()
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
