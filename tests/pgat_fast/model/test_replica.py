"""Calls of a module with other parameters change nothing in it."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pgat_fast.model.replica import call_with_parameters, replica
from tests.pgat_fast.model.by_hand import normal


class Tied(nn.Module):
    """A module with a shared layer, a shared weight, a missing bias and a buffer, which assigns to an attribute."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.layers = nn.ModuleList([self.first, nn.Sequential(nn.GRU(3, 3)), self.first])
        self.register_buffer("offset", torch.ones(3))
        self.missing = None
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for layer in self.layers:
            y = layer(x)
            x = y[0] if isinstance(y, tuple) else y
        return x + self.offset


def test_result_and_gradients_equal_functional_call() -> None:
    module = Tied()
    x = normal(4, 3).float()

    def results(call: object) -> list[Tensor]:
        parameters = {
            name: normal(*parameter.shape, seed=k).float().requires_grad_()
            for k, (name, parameter) in enumerate(module.named_parameters())
        }
        y = call(module, parameters, (x,))
        return [y, *torch.autograd.grad(y.square().sum(), list(parameters.values()))]

    for actual, expected in zip(results(call_with_parameters), results(functional_call), strict=True):
        assert torch.equal(actual, expected)


def test_module_is_not_changed() -> None:
    module = Tied()
    parameters = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    before = [dict(submodule.__dict__) for submodule in module.modules()]
    copied = replica(module, parameters)
    copied(torch.ones(4, 3))
    copied.eval()
    copied.register_buffer("offset", torch.zeros(3))
    assert before == [dict(submodule.__dict__) for submodule in module.modules()]
    assert module.calls == 0
    assert module.training
    assert copied.layers[0] is copied.first
    assert type(copied) is Tied
