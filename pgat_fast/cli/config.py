"""`pgat-fast config show`: print the configuration that a file and overrides resolve to."""

import argparse

from pgat_fast.cli.arguments import add_config_arguments, config_from


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `config` to `subparsers`."""
    parser = subparsers.add_parser("config", help="show what a configuration resolves to")
    commands = parser.add_subparsers(dest="config_command", metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="print every setting as YAML, defaults included")
    add_config_arguments(show)
    show.add_argument("--describe", action="store_true", help="say beside each setting what it is")
    show.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the resolved configuration and return 0. Raises ConfigError if it is invalid."""
    from pgat_fast.config import dump_config

    print(dump_config(config_from(args), describe=args.describe), end="")
    return 0
