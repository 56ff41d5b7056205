"""Checkpoints that tests save, damage and compare."""

import hashlib
import io
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgat_fast.errors import CheckpointError
from pgat_fast.training.checkpoint import Checkpoint, newest_good, read_checkpoint, verify_checkpoint

SLOWEST = 2.0
"""Limit of processor seconds for one file, bar R10. Wall-clock time would include other work of the machine."""

FILES = ("model.safetensors", "training.safetensors", "manifest.json")


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
            "lists": [[], [1, 2], (), (3, [4], {}), {"$tensor": "a name, not a tensor"}, -(2**70), -0.0, 5e-324],
            "not finite": [float("nan"), float("inf"), -float("inf")],
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
    if isinstance(first, float):
        return first.hex() == second.hex()
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def change_file(path: Path, name: str, content: bytes) -> None:
    """Replace the file `name` of the checkpoint at `path`, and its size and hash in the manifest.

    `training.pt` makes it a checkpoint of schema 1, which earlier versions wrote.
    """
    manifest = json.loads((path / "manifest.json").read_bytes())
    if name == "training.pt" and manifest["schema"] == 2:
        (path / "training.safetensors").unlink()
        manifest["schema"] = 1
        del manifest["files"]["training.safetensors"]
    (path / name).write_bytes(content)
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal(path, manifest)


def seal(path: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest` with its correct hash."""
    manifest.pop("sha256", None)
    digest = hashlib.sha256(canonical(manifest)).hexdigest()
    (path / "manifest.json").write_bytes(canonical(manifest | {"sha256": digest}))


def canonical(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def convert_to_schema_1(path: Path) -> None:
    """Give the checkpoint at `path` the files that earlier versions wrote: the training state by `torch.save`."""
    buffer = io.BytesIO()
    torch.save(read_checkpoint(path).training, buffer)
    change_file(path, "training.pt", buffer.getvalue())


def assert_detected(path: Path, file: str) -> str:
    """Assert that the only fault at `path` is found in time, by all readers, and names `file`; return it.

    The checkpoint of step 1, in the same folder, must be used instead.
    """
    started = time.process_time()
    (fault,) = verify_checkpoint(path)
    assert time.process_time() - started < SLOWEST
    assert fault.startswith(str(path / file))
    assert len(fault) < 1000
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert str(path / file) in str(error.value)
    assert "Use another checkpoint" in str(error.value)
    loaded = newest_good(path.parent)
    assert loaded is not None
    assert loaded[0] == path.parent / name_of(1)
    assert same(loaded[1], checkpoint_of(1))
    return fault


def flip_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def names_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())
