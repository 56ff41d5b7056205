"""Checkpoints that tests save, damage and compare."""

import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgat_fast.training.checkpoint import Checkpoint

FILES = ("model.safetensors", "training.pt", "manifest.json")


def name_of(step: int) -> str:
    return f"epoch-0001-step-{step:08d}"


def checkpoint_of(step: int, best: str | None = None) -> Checkpoint:
    """Return what a run stores after `step` steps: a model, Adam after one step, generators and progress."""
    torch.manual_seed(step)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    return Checkpoint(
        weights=dict(model.state_dict()),
        training={
            "optimizer": optimizer.state_dict(),
            "generators": {"python": random.Random(step).getstate(), "torch": torch.get_rng_state()},
            "progress": {"step": step, "best_loss": None, "rate": 0.1, "name": "é", "finite": True},
            "order": OrderedDict(first=[1, 2], second=(3, [4])),
            "kinds": [
                torch.ones(3, dtype=torch.bfloat16),
                torch.zeros(0),
                torch.tensor(2.5),
                torch.tensor(float("nan")),
            ],
        },
        about={
            "config": {"model": {"seq_len": 6}},
            "epoch": 1,
            "step": step,
            "best": best,
            "validation_loss": 0.1 + step,
            "input_scaler": {"columns": ["a"], "mean": [0.1], "std": [1.0]},
            "target_scaler": {"columns": ["a"], "mean": [1e-300], "std": [1.0]},
            "data": {"path": "prices.csv", "rows": 40},
            "versions": {"torch": "2"},
            "backend": "reference",
        },
    )


def same(first: Any, second: Any) -> bool:
    """Return whether two trees contain the same types and the same bits."""
    if isinstance(first, Checkpoint):
        # safetensors orders by type and name.
        weights = [dict(sorted(checkpoint.weights.items())) for checkpoint in (first, second)]
        return same(*weights) and same(first.training, second.training) and same(first.about, second.about)
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        # Compare bytes, since NaN differs from itself.
        first_bytes, second_bytes = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (first, second))
        return torch.equal(first_bytes, second_bytes)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def flip_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def names_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())
