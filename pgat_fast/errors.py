"""Exceptions of this package. Error messages name the file, key, row or shape at fault, and what to do."""

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """Return the first line of the message of `error`, or the name of its type if the message is empty."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def name_some(names: Sequence[str], most: int = 10) -> str:
    """Return at most `most` of `names`, separated by semicolons, and the number of the others."""
    shown = [*names[:most], *([f"and {len(names) - most} more"] if len(names) > most else [])]
    return "; ".join(name[:200] for name in shown)


class PgatError(Exception):
    """Base class of all errors that a user can cause and repair."""


class ConfigError(PgatError, ValueError):
    """A configuration file, key or `--set` override is invalid."""


class DataError(PgatError, ValueError):
    """A CSV file does not contain the data that the requested windows need."""


class CheckpointError(PgatError, ValueError):
    """A state dict or checkpoint does not fit the configured model, is damaged, or cannot be written."""


class BackendError(PgatError, RuntimeError):
    """The requested backend cannot run on this machine."""


class TrainingError(PgatError, RuntimeError):
    """Training cannot continue because a loss or a gradient is not finite."""


class OutOfMemoryError(PgatError, MemoryError):
    """The machine has run out of memory."""


class MemoryLimitError(PgatError, MemoryError):
    """The run reached `run.memory_limit_gb` or `run.device_memory_limit_gb`."""


class RankError(PgatError, RuntimeError):
    """Another rank has ended or does not answer; the message names it.

    Attributes:
        exit_code: exit code of the rank that ended the run; None if it is unknown.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequested(BaseException):
    """A request to stop the run; the message names its source, such as SIGTERM.

    Like KeyboardInterrupt, it derives from BaseException: `except Exception` does not catch it.
    """
