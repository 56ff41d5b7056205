"""Arguments and logging shared by several commands. Imports neither torch nor the configuration."""

import argparse
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pgat_fast.config import Config
    from pgat_fast.data.price_format import PriceOptions

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `ArgumentParser.add_subparsers` returns; argparse has no public name for it."""


def add_command(
    commands: Subparsers, name: str, run: Callable[[argparse.Namespace], int], text: str | None = None
) -> argparse.ArgumentParser:
    """Add the command `name`, which calls `run`, and return its parser.

    The help of the command is `text`, by default the docstring of `run`. Its first line is also the summary in the list
    of commands.
    """
    text = text or inspect.getdoc(run) or ""
    summary = text.partition("\n")[0].rstrip(".")
    parser = commands.add_parser(
        name,
        help=summary[:1].lower() + summary[1:],
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_group(commands: Subparsers, name: str, summary: str, epilog: str | None = None) -> Subparsers:
    """Add the command `name`, which has commands of its own, and return what they are added to."""
    parser = commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:],
        description=f"{summary}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config FILE` and `--set KEY=VALUE ...`, which `config_from` reads."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings (default: the default settings)")
    add_overrides_argument(parser)


def add_overrides_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE ...` alone, for commands that get the configuration from elsewhere."""
    text = "override settings, for example training.epochs=5; can be repeated"
    parser.add_argument(
        "--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help=text
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `RUN` as `folder`, and `--checkpoint`."""
    parser.add_argument("folder", metavar="RUN", help="folder of a run, for example runs/quickstart")
    text = "checkpoint to load the weights from (default: %(default)s)"
    parser.add_argument("--checkpoint", default="best", metavar="best|latest|NAME", help=text)


def add_price_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a user states about a file of prices, which `price_options` reads, and `--strict`."""
    group = parser.add_argument_group("prices", "What a file of prices does not show; by default it is found out.")
    text = "form of the dates, as for strptime (%%d/%%m/%%Y), or s, ms, us or ns for times since 1970"
    group.add_argument("--date-format", metavar="FORMAT", help=text)
    text = "names of the columns in the file, for example: open=1.Open close=4.Close date=Day"
    group.add_argument("--columns", metavar="NAME=COLUMN", nargs="+", action="extend", default=[], help=text)
    text = "decimal mark of the numbers, . or ,"
    group.add_argument("--decimal", choices=(".", ","), metavar="MARK", help=text)
    group.add_argument("--separator", metavar="MARK", help="mark between the fields: , ; | or tab")
    add_strict_argument(parser)


def add_strict_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--strict` to `parser`."""
    parser.add_argument("--strict", action="store_true", help="refuse rows with probable faults, not only warn of them")


def price_options(args: argparse.Namespace) -> "PriceOptions":
    """Return the options given by the arguments of `add_price_arguments`. Raises DataError."""
    from pgat_fast.data.price_format import PriceOptions
    from pgat_fast.errors import DataError

    for item in args.columns:
        if "=" not in item:
            raise DataError(f"--columns {item}: write NAME=COLUMN, for example open=1.Open")
    columns = dict(item.split("=", 1) for item in args.columns)
    separator = {"tab": "\t", "\\t": "\t"}.get(args.separator, args.separator)
    return PriceOptions(
        args.date_format, {name.strip().lower(): value for name, value in columns.items()}, args.decimal, separator
    )


def trading_days(text: str) -> str:
    """Check the value of `--trading-days`, for argparse."""
    from pgat_fast.data.calendar_names import checked_name

    try:
        return checked_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error


def add_quiet_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--quiet`."""
    parser.add_argument("--quiet", action="store_true", help="show no progress bar and log warnings only")


def config_from(args: argparse.Namespace) -> "Config":
    """Return the configuration given by the arguments of `add_config_arguments`. Raises ConfigError."""
    from pgat_fast.config import load_config

    return load_config(args.config, args.overrides)


def start_logging(*, quiet: bool) -> None:
    """Write log lines to standard error: warnings only if `quiet`."""
    import logging
    import sys

    # Set the level of the handler, not of the logger: the log file of a run gets every line.
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    logging.basicConfig(level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(message)s")
