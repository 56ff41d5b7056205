"""`pgat-fast report`: write the HTML page of a run."""

import argparse
from pathlib import Path

from pgat_fast.cli.arguments import Subparsers, add_command, start_logging


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `report` to `subparsers`."""
    parser = add_command(subparsers, "report", run)
    parser.add_argument("folder", metavar="RUN", help="folder of a run, for example runs/quickstart")
    parser.add_argument("--out", metavar="FILE", help="output file (default: RUN/report.html)")


def run(args: argparse.Namespace) -> int:
    """Write an HTML page about a run.

    The page is one self-contained file: forecasts compared with naive baselines, losses,
    memory and configuration. For an unfinished run it shows the progress so far.
    """
    from pgat_fast.report.page import write_report

    start_logging(quiet=True)
    print(write_report(Path(args.folder), None if args.out is None else Path(args.out)))
    return 0
