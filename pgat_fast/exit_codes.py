"""Exit codes of `pgat-fast`. A run that a signal stopped ends with 128 plus the number of the signal."""

SUCCESS = 0
FAULTS = 1
"""A check found faults."""
FAILED = 1
"""An error that nobody foresaw; its traceback is shown."""
WRONG_INPUT = 2
"""What the user can repair; the message on standard error says how."""
NOT_FINITE = 3
"""A loss or a gradient became NaN or infinite."""
OUT_OF_MEMORY = 4
MEMORY_LIMIT = 5
"""The run came to its memory limit; a checkpoint has been written."""
INTERRUPTED = 130
