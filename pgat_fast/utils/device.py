"""Selection of the device of a run."""

import torch

from pgat_fast.errors import BackendError


def resolve_device(device: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises BackendError if it does not exist."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise BackendError(f"{device!r} is not a device: use auto, cpu, cuda or cuda:N") from error
    if not device_exists(device):
        raise BackendError(
            f"device {device} does not exist here: torch sees {_cuda_devices()} CUDA devices; use cpu or auto (the "
            "setting run.device, or --device of commands that have it)"
        )
    return resolved


def device_exists(device: str) -> bool:
    """Return whether this machine has the device `auto`, `cpu`, `cuda` or `cuda:N`."""
    if not device.startswith("cuda"):
        return True
    return (torch.device(device).index or 0) < _cuda_devices()


def _cuda_devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def synchronize(device: torch.device) -> None:
    """Wait until `device` has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
