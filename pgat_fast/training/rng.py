"""Random number generators of a process: seeded, stored and restored together."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

_FILLING: Final[Any] = torch.utils.deterministic
"""Its attribute `fill_uninitialized_memory` is unknown to mypy."""


def seed_everything(seed: int, *, deterministic: bool = True) -> None:
    """Seed python, numpy and torch (all devices). With `deterministic`, choose repeatable CUDA algorithms if available.

    `deterministic` applies to the whole process. It has no effect on a CPU, whose algorithms are repeatable.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user libraries may draw from the global generator
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = not deterministic
        _use_deterministic_algorithms(deterministic)


def _use_deterministic_algorithms(enabled: bool) -> None:
    """Choose repeatable algorithms, without filling new memory with NaN.

    Torch fills it by default where algorithms are deterministic, which costs a launch for each of hundreds of tensors
    in a step, and only makes programs repeatable that read memory which they never wrote.
    """
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    _FILLING.fill_uninitialized_memory = not enabled


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use the algorithms of training with `run.deterministic: enabled` within the context, in the whole process."""
    mode, fills = torch.get_deterministic_debug_mode(), _FILLING.fill_uninitialized_memory
    try:
        _use_deterministic_algorithms(enabled)
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        _FILLING.fill_uninitialized_memory = fills


def generator_states() -> dict[str, Any]:
    """Return the state of every generator as plain Python values and integer tensors. Waits for no device."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Restore the generator states that `generator_states` returned.

    Those of CUDA devices are left unchanged if the number of devices differs.
    """
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
