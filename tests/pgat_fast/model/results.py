"""Results of modules with their gradients, comparison of results, and memory kept for the backward pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.pgat_fast.model.by_hand import EXACT, normal


def outputs_and_gradients(module: nn.Module, *inputs: Tensor, seed: int = 20) -> dict[str, Tensor]:
    """Return outputs, and gradients of inputs and parameters, by name; `seed` draws the gradients of the outputs."""
    leaves = {f"input {k}": x.detach().clone().requires_grad_() for k, x in enumerate(inputs)}
    outputs = as_tuple(module(*leaves.values()))
    leaves |= dict(module.named_parameters())
    upstream = [normal(*y.shape, seed=seed + k).to(y.dtype) for k, y in enumerate(outputs)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), upstream)
    results = {f"output {k}": y.detach() for k, y in enumerate(outputs)}
    return results | dict(zip(leaves, gradients, strict=True))


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = EXACT) -> None:
    """Check differences relative to the largest value of each tensor, or to 1 if that is larger."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].shape == tensor.shape, name
        limit = tolerance * max(1.0, float(tensor.abs().max()))
        worst = float((actual[name] - tensor).abs().max())
        assert worst <= limit, f"{name}: largest difference {worst}, allowed {limit}"


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def bytes_kept(call: Callable[[], Any], ignored: Iterable[Tensor] = ()) -> int:
    """Return the bytes that `call` keeps for the backward pass, each storage once, without those of `ignored`."""
    ignored_storages = {tensor.untyped_storage()._cdata for tensor in ignored}
    storages: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for key, storage in storages.items() if key not in ignored_storages)
