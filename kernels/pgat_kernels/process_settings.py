"""Settings of the whole process that threads change for a while: shared while they agree, restored by the last one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any, Generic, TypeVar
from weakref import WeakSet

Value = TypeVar("Value")


class _Request(Generic[Value]):
    """An open context that asks for `value`."""

    def __init__(self, value: Value) -> None:
        self.thread, self.value = get_ident(), value


class SharedSetting(Generic[Value]):
    """A setting that exists once in a process, such as a flag of torch or an environment variable.

    A context that reads the setting, changes it and writes the old value back is wrong if two threads overlap: the
    second reads the value of the first, and restores it after the first has ended. `set_to` is safe:

    - The first context saves the value that it finds. The last one, in whatever order they are left, restores it.
    - Threads that ask for the same value share it.
    - Within a thread the innermost context applies.
    - Different values in different threads: no thread waits, so that nothing can deadlock. `choose` selects one of the
      values; it must be one that is correct for all of these threads, and differs for some in speed only. By default it
      is the latest.
    - If other code changes the setting while contexts are open, that value is kept: it is restored when they end, and
      not overwritten before the next context is entered or left.
    - In a forked process only the contexts of the thread that called `fork` are open.
    """

    def __init__(
        self,
        read: Callable[[], Value],
        write: Callable[[Value], None],
        *,
        choose: Callable[[list[Value]], Value] = lambda values: values[-1],
        to_restore: Callable[[Value], Value] = lambda value: value,
    ) -> None:
        """
        Args:
            read: returns the setting.
            write: changes the setting.
            choose: returns the value that applies, given the innermost values of all threads, oldest first.
            to_restore: returns what to write so that the setting is again what it was when `read` returned this value.
        """
        self._read, self._write, self._choose, self._to_restore = read, write, choose, to_restore
        self._requests: list[_Request[Value]] = []
        self._original: tuple[Value, Value] | None = None
        """The value before the first context and what restores it; None if no context is open."""
        self._written: Value | None = None
        self._updating = self._changed = False
        _settings.add(self)

    @contextmanager
    def set_to(self, value: Value) -> Iterator[None]:
        """Ask for `value` within the context; see the class for what applies if others ask for another one."""
        request = _Request(value)
        try:
            with LOCK:
                self._requests.append(request)
                self._update()
            yield
        finally:
            with LOCK:
                self._requests = [other for other in self._requests if other is not request]
                self._update()

    def asked(self) -> Value:
        """Return the value for which this thread asks; that of the process without our contexts if for none."""
        with LOCK:
            thread = get_ident()
            for request in reversed(self._requests):
                if request.thread == thread:
                    return request.value
            return self._read() if self._original is None else self._original[0]

    def is_open(self) -> bool:
        """Return whether any thread asks for a value."""
        return bool(self._requests)

    def _update(self) -> None:
        """Write the value that applies now. The lock must be held.

        A signal handler or a finalizer may enter or leave a context in the middle of this method, in the same thread.
        Then the method starts again.
        """
        self._changed = True
        if self._updating:
            return
        self._updating = True
        try:
            while self._changed:
                self._changed = False
                current = self._read()
                if self._original is None or current != self._written:  # also if other code has changed it
                    self._original = current, self._to_restore(current)
                innermost: dict[int, Value] = {}
                for request in self._requests:
                    innermost.pop(request.thread, None)  # the latest request of a thread counts by its own time
                    innermost[request.thread] = request.value
                target = self._choose(list(innermost.values())) if innermost else self._original[1]
                if target != current:
                    self._write(target)
                self._written = target
                if not self._requests:
                    self._original = None
        finally:
            self._updating = False

    def _after_fork(self) -> None:
        """Close the contexts of threads that do not exist in a forked process."""
        thread = get_ident()
        self._requests = [request for request in self._requests if request.thread == thread]
        if self._original is not None:
            self._update()


LOCK = RLock()
"""Lock of all settings, held for microseconds; reentrant because of signal handlers and finalizers. A fork waits for
it, so that the new process never finds it held."""
_settings: "WeakSet[SharedSetting[Any]]" = WeakSet()


def _after_fork_in_child() -> None:
    try:
        for setting in list(_settings):
            setting._after_fork()
    finally:
        LOCK.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=_after_fork_in_child)
