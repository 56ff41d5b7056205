"""The command line. Each command is a module with `add_parser`, light at import, and `run`."""

import argparse
import sys
from collections.abc import Sequence

from pgat_fast import __version__
from pgat_fast.cli import config, data, train
from pgat_fast.errors import PgatError, TrainingError

USER_ERROR = 2
"""Exit code for what the user can repair; the message on stderr says how."""

TRAINING_STOPPED = 3
"""Exit code of a training run that could not go on, because a loss or gradient was not finite."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgat-fast",
        description="Spatio-temporal graph-attention forecaster: build the data, train, look at settings.",
    )
    parser.add_argument("--version", action="version", version=f"pgat-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (data, config, train):
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns its exit code: 0 success, 1 a check found faults, 2 wrong input, 3 training stopped, 130 interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return TRAINING_STOPPED
    except PgatError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader of our output went away, as with `| head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a path that the system refuses
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
