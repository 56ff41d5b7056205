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
    import sys

    from pgat_fast.config import dump_config

    config = config_from(args)
    text = dump_config(config, describe=args.describe)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # what is printed must still be the same configuration
        text = dump_config(config, describe=args.describe, ascii_only=True)
    print(text, end="")
    return 0
