"""Stopping a run from outside: signals, a time to react, a last resort. Light: imports no torch.

Python runs its signal handlers in the main thread, between two instructions; one backward pass can take minutes. So the
signals wake a thread of their own. It tells the main thread, which asks between two batches; when no answer comes in
time, the thread saves what there is by itself and ends the process. A second signal ends it at once, if it is not
an echo of the first (`ECHO`).
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
"""What stops a run; the exit code is 128 plus the number of the signal. Windows has two of them."""

PATIENCE = 12.0
"""Seconds that the main thread has to stop by itself while it trains; the last resort after it takes a few more."""
PATIENCE_OF_OTHERS = 60.0
"""The same for a rank that can save nothing alone: it waits for the others."""
LAST_RESORT_SECONDS = 15.0
"""That the last resort may take in one of several ranks: a GPU that waits for one that is lost gives no weights away.
With `PATIENCE` less than the 30 s after which torchrun kills."""

ECHO = 1.5
"""Seconds in which more signals are taken for the first one: a shell and the kernel both tell of a closed terminal."""


class Stop:
    """Whether the run should stop. Without signals (`StopSignals`), `request` is the only way to say so.

    Attributes:
        last_resort: called by the waiting thread when the main thread does not stop in time; None: nothing to save.
        patience: seconds until then; none at first, when there is nothing to save.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.last_resort: Callable[[str], None] | None = None
        self.patience = 0.0
        self.ended = threading.Event()

    def request(self, reason: str) -> None:
        """Ask the run to stop at the next place where it can."""
        self.requested = self.requested or reason

    def check(self) -> None:
        """Raise StopRequested where somebody asked for it. Cheap: called before every batch."""
        if self.requested is not None:
            raise StopRequested(self.requested)


class StopSignals(Stop):
    """A `Stop` that signals request, as a context manager. To be entered in the main thread, once at a time."""

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        # nohup has told us to ignore SIGHUP. SIGINT is different: a shell has every background job ignore it, but who
        # sends it to one means it.
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN:
            self._numbers.remove(hangup)
        self._before = {number: signal.signal(number, _leave_it_to_the_thread) for number in self._numbers}
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="pgat-fast signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ended.set()
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._writer.close()  # ends the thread
        self._thread.join(timeout=1.0)
        self._reader.close()

    def _watch(self) -> None:
        first: float | None = None  # what others asked for, with `request`, is no signal
        while received := self._reader.recv(64):
            for number in received:
                if number not in self._numbers or self.ended.is_set():
                    continue
                name = signal.Signals(number).name
                if first is not None:
                    if time.monotonic() - first < ECHO:
                        continue
                    _say(f"{name} again: leaving at once")
                    end_process(128 + number)
                _say(f"{name}: saving a checkpoint and stopping (again: leave at once)")
                first = time.monotonic()
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
            _say(f"{name}: {type(error).__name__}: {error}")
        finally:
            if not self.ended.is_set():
                end_process(128 + number)


def _leave_it_to_the_thread(number: int, frame: object) -> None:
    """Python's part of the handler: what the default would do must not happen."""


def _say(message: str) -> None:
    """Write to standard error without the locks of `logging` or of the stream, which the main thread may hold."""
    with contextlib.suppress(OSError):  # nobody listens
        os.write(2, f"{message}\n".encode())
