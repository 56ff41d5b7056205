"""Parts of the model, each alone on its inputs of a training step: the forward pass, and both passes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from bench.backend_spec import build, parse_spec
from bench.measure import state_of
from bench.parity import require_parity
from bench.suite import configuration, measure
from pgat_fast.data.windows import example
from pgat_fast.model.precision import float32_products_in, products_in, resolve_precision

OF_ALL = ("graph_builder.phase", "graph_builder.body_nodes", "graph_builder.body_fusion", "encoder", "decoder.0")
"""Parts that do not depend on the combiner: timed in the model with the batched one."""
PARTS = [("batched", part) for part in OF_ALL] + [
    (name, "graph_builder.combiner") for name in ("batched", "hierarchical")
]


@contextmanager
def calls_of(module: nn.Module) -> Iterator[list[tuple[Any, Any]]]:
    """Collect the arguments of every call of `module` within the context."""
    calls: list[tuple[Any, Any]] = []
    hook = module.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


def own_leaves(tree: Any) -> Any:
    """Return `tree` with its tensors copied; those of floating point require gradients."""
    return tree_map(
        lambda x: x.detach().clone().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x, tree
    )


@pytest.mark.parametrize("which", ["forward", "both"])
@pytest.mark.parametrize(("of", "part"), PARTS, ids=[f"{part}, {of}" for of, part in PARTS])
def test_part(
    benchmark: BenchmarkFixture,
    of: str,
    part: str,
    which: str,
    backend: str,
    precision: str,
    batch: int,
    seq_len: int,
    shape: str,
    device: torch.device,
) -> None:
    spec = parse_spec(backend)
    require_parity(spec.backend, of)
    config = configuration(shape, of, f"model.seq_len={seq_len}", *spec.overrides())
    model = build(config, spec).to(device)
    module = model.get_submodule(part)
    resolved = resolve_precision(precision, device)
    inputs = [x.to(device) for x in example(config.model, batch)[:4]]
    with calls_of(module) as calls, torch.no_grad(), products_in(resolved, device):
        model(*inputs)
    args, kwargs = own_leaves(calls[0])
    leaves = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]

    def forward() -> Tensor:
        with products_in(resolved, device):
            results = tree_flatten(module(*args, **kwargs))[0]
        return torch.stack([x.sum() for x in results if isinstance(x, Tensor) and x.requires_grad]).sum()

    def both() -> None:
        loss = forward()
        with float32_products_in(resolved, device):
            loss.backward()

    measure(benchmark, forward if which == "forward" else both, device, ignored=lambda: (*leaves, *state_of(model)))
