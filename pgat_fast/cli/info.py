"""`pgat-fast info`: versions, devices and available backends."""

import argparse

from pgat_fast.cli.arguments import Subparsers, add_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `info` to `subparsers`."""
    parser = add_command(subparsers, "info", run)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--kernels", action="store_true", help="print the implementation of each operator")


def run(args: argparse.Namespace) -> int:
    """Print versions, devices and available backends.

    For each backend or kernel that is not available, the reason is printed.
    """
    import json

    from pgat_fast.utils.system import collect, format_info, format_kernels

    info = collect()
    if args.json:
        print(json.dumps(info["kernels"] if args.kernels else info, indent=2))
    else:
        print(format_kernels(info) if args.kernels else format_info(info))
    return 0
