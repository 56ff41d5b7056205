"""`pgat-fast info`: versions, the machine, and which backends run here."""

import argparse


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `info` to `subparsers`."""
    parser = subparsers.add_parser("info", help="versions, devices, and which backends run here, or why not")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--kernels", action="store_true", help="print the implementation of each operator here")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the information and return 0."""
    import json

    from pgat_fast.utils.system import collect, format_info, format_kernels

    info = collect()
    if args.json:
        print(json.dumps(info["kernels"] if args.kernels else info, indent=2))
    else:
        print(format_kernels(info) if args.kernels else format_info(info))
    return 0
