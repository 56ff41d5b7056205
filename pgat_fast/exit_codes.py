"""Exit codes of `pgat-fast`. A run stopped by a signal ends with 128 plus the number of the signal."""

import signal

from pgat_fast.errors import MemoryLimitError, OutOfMemoryError, PgatError, RankError, StopRequested, TrainingError

SUCCESS = 0
FAULTS = 1
"""A check found faults."""
FAILED = 1
"""An unexpected error; its traceback is shown."""
WRONG_INPUT = 2
"""An error that the user can repair; the message on standard error says how."""
NOT_FINITE = 3
"""A loss or a gradient became NaN or infinite."""
OUT_OF_MEMORY = 4
MEMORY_LIMIT = 5
"""The run reached its memory limit; a checkpoint has been written."""
RANK_LOST = 6
"""Another rank has ended or does not answer."""
INTERRUPTED = 130


def of_error(error: BaseException) -> int:
    """Return the exit code of a program that `error` ends."""
    match error:
        case StopRequested():
            return of_signal(str(error))
        case KeyboardInterrupt():
            return INTERRUPTED
        case TrainingError():
            return NOT_FINITE
        case OutOfMemoryError():
            return OUT_OF_MEMORY
        case MemoryLimitError():
            return MEMORY_LIMIT
        case RankError():
            return RANK_LOST if error.exit_code is None else error.exit_code
        case PgatError() | OSError():  # an OSError means a full disk or a path that the system rejects
            return WRONG_INPUT
    return FAILED


def of_signal(name: str) -> int:
    """Return 128 plus the number of the signal called `name`; 130 for any other name."""
    number = getattr(signal, name, None)
    return 128 + int(number) if isinstance(number, signal.Signals) else INTERRUPTED
