"""Command line. Each command is a module with `add_parser`, light at import, and `run`."""

import argparse
import sys
from collections.abc import Sequence

from pgat_fast import __version__, exit_codes
from pgat_fast.cli import bench, checkpoint, config, data, evaluate, export, info, plan, predict, report, sweep, train
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
    for command in (data, config, plan, train, sweep, evaluate, predict, export, report, checkpoint, bench, info):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, one of `exit_codes`."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except StopRequested as stopped:
        if is_main():
            print(f"stopped: {stopped}", file=sys.stderr)
        return exit_codes.of_error(stopped)
    except BrokenPipeError:  # the reader of the output has closed it, as with `| head`
        sys.stderr.close()
        return exit_codes.SUCCESS
    except (PgatError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_codes.of_error(error)
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        return exit_codes.of_error(interrupt)
