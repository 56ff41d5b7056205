"""Recomputing a block in the backward pass changes memory, not results."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pgat_fast.model.reference.combiner_batched import BatchedCombiner, BatchedFusionBlock
from pgat_fast.model.reference.combiner_hierarchical import HierarchicalCombiner, HierarchicalFusionBlock
from pgat_fast.model.reference.recompute import recompute_in_backward
from tests.pgat_fast.model.by_hand import normal, randomize, uniform
from tests.pgat_fast.model.results import bytes_kept

BLOCKS = {"batched": BatchedFusionBlock, "hierarchical": HierarchicalFusionBlock}
Call = Callable[..., Tensor]


def plainly(block: nn.Module, *inputs: Tensor) -> Tensor:
    result: Tensor = block(*inputs)
    return result


def block_and_inputs(kind: str, dropout: float) -> tuple[nn.Module, list[Tensor]]:
    block = randomize(BLOCKS[kind](8, 2, dropout)).train()
    shapes = [(4, 9, 8)] if kind == "batched" else [(4, 9, 8), (4, 8)]
    return block, [normal(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]


def results(call: Call, kind: str, dropout: float) -> list[Tensor]:
    """Return the output, gradients of inputs and parameters, and the next random numbers."""
    block, inputs = block_and_inputs(kind, dropout)
    torch.manual_seed(11)
    output = call(block, *inputs)
    torch.rand(7)  # draws between forward and backward pass must not affect the recomputation
    output.backward(normal(*output.shape, seed=5))
    gradients = [tensor.grad for tensor in (*inputs, *block.parameters())]
    return [output, *(gradient for gradient in gradients if gradient is not None), torch.rand(3)]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", BLOCKS)
def test_outputs_gradients_and_random_numbers_equal_the_plain_block(kind: str, dropout: float) -> None:
    expected = results(plainly, kind, dropout)
    actual = results(recompute_in_backward, kind, dropout)
    block, inputs = block_and_inputs(kind, dropout)
    assert len(expected) == len(actual) == 2 + len(inputs) + len(list(block.parameters()))
    for actual_tensor, expected_tensor in zip(actual, expected, strict=True):
        assert torch.equal(actual_tensor, expected_tensor)


@pytest.mark.parametrize("kind", BLOCKS)
def test_recomputation_uses_the_precision_of_the_forward_pass(kind: str) -> None:
    def gradients(call: Call) -> list[Tensor | None]:
        block, inputs = block_and_inputs(kind, 0.0)
        block.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = call(block, *(tensor.detach().float() for tensor in inputs))
        output.float().square().sum().backward()
        return [parameter.grad for parameter in block.parameters()]

    for actual, expected in zip(gradients(recompute_in_backward), gradients(plainly), strict=True):
        assert actual is not None
        assert expected is not None
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_reach_parameters_replaced_by_functional_call(kind: str) -> None:
    def gradients(call: Call) -> dict[str, Tensor]:
        block, inputs = block_and_inputs(kind, 0.5)

        class Calls(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.block = block

            def forward(self, *values: Tensor) -> Tensor:
                return call(self.block, *values)

        replacements = {
            f"block.{name}": (2 * parameter.detach()).requires_grad_() for name, parameter in block.named_parameters()
        }
        torch.manual_seed(11)
        output = functional_call(Calls(), replacements, tuple(inputs))
        output.square().sum().backward()
        assert all(parameter.grad is None for parameter in block.parameters())
        return {name: tensor.grad for name, tensor in replacements.items() if tensor.grad is not None}

    expected, actual = gradients(plainly), gradients(recompute_in_backward)
    assert len(actual) == len(list(block_and_inputs(kind, 0.5)[0].parameters()))
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


@pytest.mark.parametrize("kind", BLOCKS)
def test_only_inputs_and_parameters_are_kept(kind: str) -> None:
    block, inputs = block_and_inputs(kind, 0.1)
    limit = sum(tensor.numel() * 8 for tensor in (*inputs, *block.parameters()))
    assert bytes_kept(lambda: recompute_in_backward(block, *inputs)) <= limit
    assert bytes_kept(lambda: plainly(block, *inputs)) > 2 * limit


@pytest.mark.parametrize("model", [BatchedCombiner, HierarchicalCombiner])
def test_combiners_keep_only_block_inputs(
    model: type[BatchedCombiner] | type[HierarchicalCombiner],
) -> None:
    def kept(layers: int) -> int:
        combiner = randomize(model(8, 2, layers, 0.1)).train()
        adjacencies = tuple(uniform(2, 3, 13, 13, seed=seed).requires_grad_() for seed in range(3))
        return bytes_kept(lambda: plainly(combiner, adjacencies, normal(2, 3, 8)))

    tokens = 2 * 3 * 13 * 13 * (1 if model is BatchedCombiner else 3)
    per_block = (kept(5) - kept(1)) / 4
    # The tokens that enter the block, and its parameters: 8 bytes a number; plus the random state.
    parameters = sum(p.numel() for p in model(8, 2, 1, 0.1).layers.parameters())
    assert per_block <= 8 * (tokens * 8 + parameters) + 10_000


@pytest.mark.parametrize("kind", BLOCKS)
def test_block_is_called_directly_without_gradients(kind: str) -> None:
    block, inputs = block_and_inputs(kind, 0.0)
    with torch.no_grad():
        assert torch.equal(recompute_in_backward(block, *inputs), block(*inputs))
