"""TensorBoard, if it is installed."""

from typing import Any

from pgat_fast.errors import ConfigError


def writer_class() -> Any:
    """Return `SummaryWriter` of torch. Raises ConfigError if TensorBoard is not installed or cannot be imported."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"run.tensorboard needs TensorBoard, which cannot be imported ({error}): "
            'pip install "pgat-fast[tensorboard]", or set run.tensorboard: false'
        ) from error
    return SummaryWriter
