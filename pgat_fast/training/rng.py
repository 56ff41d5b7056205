"""The random generators of a process: seeded together, stored together."""

import os
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, *, deterministic: bool = True) -> None:
    """Seed python, numpy and torch (all devices); on CUDA choose repeatable algorithms where there are any.

    What `deterministic` sets holds for the whole process. On a CPU it changes nothing: its algorithms repeat.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that a user brings draw from the global generator
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = not deterministic
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seed torch for one step of one rank: what dropout draws depends on these numbers alone."""
    (state,) = np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)
    torch.manual_seed(int(state >> np.uint64(1)))


def generator_states() -> dict[str, Any]:
    """The state of every generator: plain Python values and uint8 tensors. Asks no device to wait."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Put every generator into the state that `generator_states` returned.

    Those of CUDA devices are left alone where the number of devices is another one.
    """
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
