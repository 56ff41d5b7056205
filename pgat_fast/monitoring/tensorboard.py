"""Scalars for TensorBoard, if it is installed."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgat_fast.errors import ConfigError

logger = logging.getLogger("pgat_fast.monitoring")


class TensorBoard:
    """Writer of scalars to a folder of event files. After construction it never raises: an error ends the writing."""

    def __init__(self, folder: Path) -> None:
        """Raise ConfigError if TensorBoard is not installed. No file is created before the first number."""
        self._writer_class = writer_class()
        self._folder = folder
        self._writer: Any = None
        self._off = False

    def add(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Add every finite number of `values` as `group/name` at `step`; skip other values."""
        if self._off:
            return
        try:
            if self._writer is None:
                # Hides what an earlier process of the run wrote for steps that are repeated.
                self._writer = self._writer_class(str(self._folder), purge_step=step)
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                    self._writer.add_scalar(f"{group}/{name}", value, step)
        except Exception as error:  # a full disk must not end a run
            self._give_up(error)

    def close(self) -> None:
        """Write buffered values and close the files."""
        if self._off or self._writer is None:
            return
        try:
            self._writer.close()
        except Exception as error:
            self._give_up(error)
        self._off = True

    def _give_up(self, error: Exception) -> None:
        self._off = True
        logger.warning(
            "%s cannot be written: %s: %s; the run goes on without TensorBoard, metrics.jsonl holds the same",
            self._folder, type(error).__name__, error,
        )  # fmt: skip


def writer_class() -> Any:
    """Return `SummaryWriter` of torch. Raises ConfigError if TensorBoard is not installed or does not load."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"run.tensorboard needs TensorBoard, which does not load here ({error}): "
            'pip install "pgat-fast[tensorboard]", or set run.tensorboard: false'
        ) from error
    return SummaryWriter
