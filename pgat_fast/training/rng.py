"""Random number generators of a process: seeded, stored and restored together."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from pgat_kernels.process_settings import LOCK

_FILLING: Final[Any] = torch.utils.deterministic
"""Its attribute `fill_uninitialized_memory` is unknown to mypy."""
CUBLAS_WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable without which products on a GPU are not repeatable."""


def seed_everything(seed: int, *, deterministic: bool = True) -> None:
    """Seed python, numpy and torch (all devices). With `deterministic`, choose repeatable CUDA algorithms if available.

    `deterministic` applies to the whole process. It has no effect on a CPU, whose algorithms are repeatable.
    """
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
        torch.backends.cudnn.benchmark = not deterministic
        use_deterministic_algorithms(deterministic)


def use_deterministic_algorithms(enabled: bool) -> None:
    """Choose repeatable algorithms in the whole process, without filling new memory with NaN.

    Torch fills it by default where algorithms are deterministic, which costs a launch for each of hundreds of tensors
    in a step, and only makes programs repeatable that read memory which they never wrote.
    """
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    _FILLING.fill_uninitialized_memory = not enabled


@contextmanager
def restored_generators() -> Iterator[None]:
    """Restore the generators, and what `seed_everything` sets, when the last thread leaves such a context."""
    global _contexts, _before
    with LOCK:
        if _contexts == 0:
            _before = generator_states(), _deterministic_settings()
        _contexts += 1
    try:
        yield
    finally:
        with LOCK:
            _contexts -= 1
            if _contexts == 0 and _before is not None:
                states, settings = _before
                _before = None
                restore_generators(states)
                if settings != _deterministic_settings():
                    torch.backends.cudnn.benchmark, deterministic, warn_only, fills, workspace = settings
                    _FILLING.fill_uninitialized_memory = fills
                    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
                    if workspace is None:
                        os.environ.pop(CUBLAS_WORKSPACE, None)


_contexts = 0
_before: tuple[dict[str, Any], tuple[bool, bool, bool, bool, str | None]] | None = None


def _deterministic_settings() -> tuple[bool, bool, bool, bool, str | None]:
    return (
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        _FILLING.fill_uninitialized_memory,
        os.environ.get(CUBLAS_WORKSPACE),
    )


def generator_states() -> dict[str, Any]:
    """Return the state of every generator as plain Python values and integer tensors. Waits for no device."""
    import numpy as np

    kind, keys, position, has_gauss, gauss = np.random.get_state()
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
    import numpy as np

    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
