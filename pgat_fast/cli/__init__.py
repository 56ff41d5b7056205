"""Command line. Each command is a module with `add_parser`, light at import, and `run`."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress

from pgat_fast import __version__, exit_codes
from pgat_fast.cli import (
    bench,
    checkpoint,
    config,
    data,
    evaluate,
    export,
    info,
    plan,
    predict,
    report,
    sweep,
    train,
    tune,
)
from pgat_fast.cli.streams import flush_or_discard, standard_streams
from pgat_fast.distributed.environment import is_main
from pgat_fast.errors import PgatError, StopRequested

_EPILOG = """\
`pgat-fast COMMAND --help` describes the options of a command.

exit codes:
  0        success
  1        a check found problems
  2        invalid input
  3        a loss or gradient was not finite
  4        out of memory
  5        the run reached its memory limit
  6        another process of distributed training failed or does not respond
  128 + N  stopped by signal N, for example 130 after Ctrl-C
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with a subparser for each command."""
    parser = argparse.ArgumentParser(
        prog="pgat-fast",
        description="Train, test and apply a spatio-temporal graph-attention forecaster of daily prices.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pgat-fast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (data, config, plan, train, sweep, evaluate, predict, export, report, checkpoint, tune, bench, info):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, one of `exit_codes`."""
    try:
        with standard_streams():
            return _run(argv)
    except OSError as error:  # standard output cannot be written
        _report(f"error: standard output: {error}")
        return exit_codes.of_error(error)


def _run(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except StopRequested as stopped:
        if is_main():
            _report(f"stopped: {stopped}")
        return exit_codes.of_error(stopped)
    except BrokenPipeError:  # the reader of the output has closed it, as with `| head`
        flush_or_discard(sys.stdout, discard=True)
        return exit_codes.SUCCESS
    except (PgatError, OSError) as error:
        _report(f"error: {error}")
        return exit_codes.of_error(error)
    except KeyboardInterrupt as interrupt:
        _report("interrupted")
        return exit_codes.of_error(interrupt)


def _report(message: str) -> None:
    with suppress(OSError):  # standard error is closed
        print(message, file=sys.stderr, flush=True)
