"""The errors that bad input raises. Each message names the file, key, row or shape and what to do."""


def first_line(error: BaseException) -> str:
    """Of what `error` says; its type where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


class PgatError(Exception):
    """Base of every error that a user can cause and repair."""


class ConfigError(PgatError, ValueError):
    """A configuration file, key or `--set` override is wrong."""


class DataError(PgatError, ValueError):
    """A CSV file does not hold what the requested windows need."""


class CheckpointError(PgatError, ValueError):
    """A state dict or checkpoint does not fit the configured model, is damaged, or cannot be written."""


class BackendError(PgatError, RuntimeError):
    """The requested backend cannot run here."""


class TrainingError(PgatError, RuntimeError):
    """Training cannot go on, because a loss or a gradient is not finite."""


class OutOfMemoryError(PgatError, MemoryError):
    """The machine has no memory left for the run."""


class MemoryLimitError(PgatError, MemoryError):
    """The run came to `run.memory_limit_gb` or `run.device_memory_limit_gb`."""


class RankError(PgatError, RuntimeError):
    """Another rank has ended or does not answer; the message names it.

    `exit_code` is that of the rank that has ended the run; None where it is not known.
    """

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequested(BaseException):
    """Somebody asked the run to stop; the text says who, such as SIGTERM.

    No error, like KeyboardInterrupt: `except Exception` lets it pass.
    """
