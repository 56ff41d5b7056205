"""Which device a run uses."""

import torch

from pgat_fast.errors import BackendError


def resolve_device(device: str) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`; raises BackendError for one that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise BackendError(f"run.device is {device}, but torch sees {count} CUDA devices; use cpu or auto")
    return resolved
