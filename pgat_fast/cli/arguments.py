"""Arguments and logging shared by several commands. Imports neither torch nor the configuration."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgat_fast.config import Config


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config FILE` and `--set KEY=VALUE ...`, which `config_from` reads."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings (default: the defaults alone)")
    add_overrides_argument(parser)


def add_overrides_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE ...` alone, for commands that get the configuration from elsewhere."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="settings that replace those of the file, such as training.epochs=5; may be given again",
    )


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
