"""`pgat-fast info`: versions, the machine, and which backends can run here."""

import argparse


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `info` to `subparsers`."""
    parser = subparsers.add_parser("info", help="versions, devices, and which backends can run here and why not")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument("--kernels", action="store_true", help="print which operators are computed by kernels here")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print it; returns 0."""
    import json

    from pgat_fast.info import as_text, collect, kernels_as_text

    info = collect()
    if args.json:
        print(json.dumps(info["kernels"] if args.kernels else info, indent=2))
    else:
        print(kernels_as_text(info) if args.kernels else as_text(info))
    return 0
