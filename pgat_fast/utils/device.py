"""Selection of the device of a run."""

import torch

from pgat_fast.errors import BackendError


def resolve_device(device: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises BackendError if it does not exist."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise BackendError(f"run.device is {device}, but torch sees {count} CUDA devices; use cpu or auto")
    return resolved
