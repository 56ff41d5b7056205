"""Standard output and standard error of a command: any text can be printed, in any encoding, and to a closed pipe."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, TextIO

_ESCAPE: Final = "pgat_fast.escape"
"""Name of `_escape` as an error handler of `codecs`."""


class _NullStream(io.TextIOBase):
    """Standard stream of a process without one, such as `pythonw`: text is discarded."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Within the context, let text be printed that the encoding of a stream lacks; on exit, flush both streams.

    Such characters are printed as `\\uXXXX`. The bytes of file names that are not text are printed unchanged where
    Python does so by default (the C locale). A stream that does not exist discards text. Streams get their settings
    back on exit.

    A reader that has closed its end of a pipe, as `| head` does, is no error.

    Raises OSError if standard output cannot be written, for example to a full disk.
    """
    codecs.register_error(_ESCAPE, _escape)
    with ExitStack() as stack:
        if None in (sys.stdin, sys.stdout, sys.stderr):
            _open_missing_descriptors()
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:
                setattr(sys, name, _NullStream())
                stack.callback(setattr, sys, name, None)
            elif hasattr(stream, "reconfigure") and getattr(stream, "errors", None) in ("strict", "surrogateescape"):
                with suppress(OSError, ValueError):  # a stream that is closed
                    previous = stream.errors
                    stream.reconfigure(errors="backslashreplace" if previous == "strict" else _ESCAPE)
                    stack.callback(_restore, stream, previous)
        try:
            yield
        finally:
            flush_or_discard(sys.stderr)
            fault = flush_or_discard(sys.stdout)
            if fault is not None and not isinstance(fault, BrokenPipeError):
                raise fault


def flush_or_discard(stream: TextIO, *, discard: bool = False) -> OSError | None:
    """Flush `stream`; return the error if that fails, BrokenPipeError if its reader has closed the pipe.

    After an error, and with `discard`, all further output is discarded: Python would print an error of its own when
    the process ends.
    """
    fault = None
    try:
        stream.flush()
    except OSError as error:
        fault = error
    except (AttributeError, ValueError):  # an object that only has `write`, or a stream that is closed
        return None
    if fault is not None or discard:
        with suppress(OSError, ValueError):
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)
    return fault


def _restore(stream: io.TextIOWrapper, errors: str) -> None:
    with suppress(OSError, ValueError):
        stream.reconfigure(errors=errors)


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace one character: a byte of a file name by itself, as `surrogateescape`; another by `backslashreplace`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    error.end = error.start + 1
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.backslashreplace_errors(error)


def _open_missing_descriptors() -> None:
    """Open the null device as each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next files to be opened would get these numbers, and messages to descriptor 2 would be written to a
    file of the run.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
