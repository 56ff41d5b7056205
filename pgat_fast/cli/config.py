"""`pgat-fast config show`: print the configuration that a file and overrides resolve to."""

import argparse

from pgat_fast.cli.arguments import Subparsers, add_command, add_config_arguments, add_group, config_from


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `config` to `subparsers`."""
    commands = add_group(subparsers, "config", "Print a resolved configuration")
    parser = add_command(commands, "show", run)
    add_config_arguments(parser)
    parser.add_argument("--describe", action="store_true", help="add a comment that describes each setting")


def run(args: argparse.Namespace) -> int:
    """Print every setting as YAML, including defaults."""
    from pgat_fast.config import dump_config

    print(dump_config(config_from(args), describe=args.describe), end="")
    return 0
