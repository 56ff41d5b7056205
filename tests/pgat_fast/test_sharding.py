"""Weights spread over two real processes: every gradient is that of the plain model."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from pgat_fast import build_model
from pgat_fast.sharding import adding_up, shard, spread, whole
from tests.pgat_fast.model.variants import FEW, config_of, inputs_of, loss_of

RANKS = 2
BACKENDS = ("torch", "reference")
"""Each with the variants that between them have every part: weights are spread part by part."""


def gradients_of(model: nn.Module, config: Any, ranks: list[int]) -> Tensor:
    """Those of the mean loss of what `ranks` have, are left in the parameters; returns the loss."""
    loss = torch.stack([loss_of(config, model(*inputs_of(config, dtype=torch.float64, seed=rank))) for rank in ranks])
    loss.mean().backward()
    return loss.detach().mean()


def compared(rank: int, name: str, backend: str) -> dict[str, float]:
    """Parameter -> the largest difference between what sharded ranks make of its gradient and what one process does."""
    config = config_of(name)
    torch.manual_seed(3)
    plain = build_model(config, backend=backend).double().eval()
    sharded = build_model(config, backend=backend).double().eval()
    sharded.load_state_dict(plain.state_dict())
    gradients_of(plain, config, list(range(RANKS)))
    shard(sharded, torch.device("cpu"), RANKS)
    held = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    assert held < 0.6 * sum(parameter.numel() for parameter in plain.parameters()), "each has its part"
    with adding_up(sharded, now=False):  # stay with the rank until the next
        gradients_of(sharded, config, [rank])
    for parameter in plain.parameters():
        if parameter.grad is not None:
            parameter.grad *= 2
    with adding_up(sharded, now=True):
        gradients_of(sharded, config, [rank])
    found = whole({key: parameter.grad for key, parameter in sharded.named_parameters()}, keep=True)
    expected = {key: parameter.grad for key, parameter in plain.named_parameters()}
    weights = dict(plain.state_dict())
    sharded.load_state_dict(spread(weights, sharded.state_dict()))
    returned = whole(dict(sharded.state_dict()), keep=True)
    assert all(torch.equal(returned[key], weight) for key, weight in weights.items()), "spread, and whole again"
    return {key: distance(found[key], expected[key]) for key in expected}


def distance(found: Tensor | None, expected: Tensor | None) -> float:
    """Relative to the largest value, and at least absolute; no gradient is one of zeros."""
    zero = torch.zeros(())
    found, expected = (zero if one is None else one for one in (found, expected))
    return float((found - expected).abs().max() / max(1.0, float(expected.abs().max())))


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    found = {}
    for backend in BACKENDS:
        for name in FEW:
            differences = compared(rank, name, backend)
            found[f"{backend}, {name}"] = max((value, key) for key, value in differences.items())
    if rank == 0:
        (folder / "found").write_text(json.dumps(found))
    distributed.destroy_process_group()


@pytest.mark.multiprocess
@pytest.mark.timeout(1200)
def test_gradients_are_those_of_the_plain_model(tmp_path: Path) -> None:
    spawn(work, (tmp_path,), nprocs=RANKS)
    found = json.loads((tmp_path / "found").read_text())
    assert len(found) == len(BACKENDS) * len(FEW)
    assert {name: one for name, one in found.items() if one[0] > 1e-10} == {}
