"""`pgat-fast report`: write the HTML page of a run."""

import argparse
from pathlib import Path

from pgat_fast.cli.arguments import start_logging


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `report` to `subparsers`."""
    parser = subparsers.add_parser(
        "report",
        help="write an HTML page about a run, finished or not",
        description="Write a self-contained HTML page about a run: forecasts compared with naive baselines, losses, "
        "memory, configuration. The page of an unfinished run shows what the run has written so far.",
    )
    parser.add_argument("folder", metavar="RUN", help="folder of a run, such as runs/quickstart")
    parser.add_argument("--out", metavar="FILE", help="file to write (default: RUN/report.html)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page, print its path, and return 0."""
    from pgat_fast.report.page import write_report

    start_logging(quiet=True)
    print(write_report(Path(args.folder), None if args.out is None else Path(args.out)))
    return 0
