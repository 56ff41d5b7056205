"""Stop requests from outside: signals, a time limit to react, and a last resort. Does not import torch.

Python runs its signal handlers in the main thread, between two instructions, and one backward pass can take minutes. So
signals wake a separate thread. It sets a request, which the main thread checks between two batches. If the main thread
does not stop in time, the separate thread saves a checkpoint and ends the process. A second signal ends the process at
once, unless it is an echo of the first (`ECHO`).
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pgat_fast.distributed.environment import end_process, is_distributed
from pgat_fast.errors import StopRequested

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Signals that stop a run. The exit code is 128 plus the number of the signal. Windows has two of them."""

PATIENCE = 12.0
"""Seconds in which the main thread must stop by itself during training; the last resort takes a few more."""
PATIENCE_OF_OTHERS = 60.0
"""The same for a rank that cannot save alone and waits for the others."""
LAST_RESORT_SECONDS = 15.0
"""Time limit of the last resort in one of several ranks: a GPU that waits for a lost rank cannot return its weights.
Together with `PATIENCE`, it is less than the 30 s after which torchrun kills the ranks."""

ECHO = 1.5
"""Seconds in which more signals count as the first one: shell and kernel both signal a closed terminal."""


class Stop:
    """A stop request. Without signals (`StopSignals`), only `request` sets it.

    Attributes:
        last_resort: called by a waiting thread if the main thread does not stop in time; None if nothing can be saved.
        patience: seconds until then; 0 at first, when there is nothing to save.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.last_resort: Callable[[str], None] | None = None
        self.patience = 0.0
        self.ended = threading.Event()

    def request(self, reason: str) -> None:
        """Ask the run to stop at the next opportunity."""
        self.requested = self.requested or reason

    def check(self) -> None:
        """Raise StopRequested if a stop was requested. Cheap, since it is called before every batch."""
        if self.requested is not None:
            raise StopRequested(self.requested)


class StopSignals(Stop):
    """Context manager in which signals set the stop request. Enter it in the main thread, once at a time."""

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        # An ignored SIGHUP stays ignored, as nohup demands. An ignored SIGINT does not: shells ignore it in every
        # background job, but a SIGINT sent to one is intended.
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN:
            self._numbers.remove(hangup)
        self._previous_handlers = {number: signal.signal(number, _do_nothing) for number in self._numbers}
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="pgat-fast signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ended.set()
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._writer.close()  # ends the thread
        self._thread.join(timeout=1.0)
        self._reader.close()

    def _watch(self) -> None:
        first_signal_time: float | None = None  # time of the first signal; calls of `request` do not count
        while received := self._reader.recv(64):
            for number in received:
                if number not in self._numbers or self.ended.is_set():
                    continue
                name = signal.Signals(number).name
                if first_signal_time is not None:
                    if time.monotonic() - first_signal_time < ECHO:
                        continue
                    _print(f"{name} again: ending at once")
                    end_process(128 + number)
                _print(f"{name}: saving a checkpoint and stopping; send it again to end at once")
                first_signal_time = time.monotonic()
                self.request(name)
                threading.Thread(target=self._resort, args=(name, number), daemon=True).start()

    def _resort(self, name: str, number: int) -> None:
        if self.ended.wait(self.patience):
            return
        if is_distributed():
            limit = threading.Timer(LAST_RESORT_SECONDS, end_process, (128 + number,))
            limit.daemon = True
            limit.start()
        try:
            if self.last_resort is not None:
                self.last_resort(name)
        except BaseException as error:
            _print(f"{name}: {type(error).__name__}: {error}")
        finally:
            if not self.ended.is_set():
                end_process(128 + number)


def _do_nothing(number: int, frame: object) -> None:
    """Replace the default handler, which would end the process; `_watch` handles the signal."""


def _print(message: str) -> None:
    """Write to standard error without the locks of `logging` or of the stream, which the main thread may hold."""
    with contextlib.suppress(OSError):  # standard error is closed
        os.write(2, f"{message}\n".encode(errors="backslashreplace"))
