"""`pgat-fast plan`: parameters, FLOPs and memory of a run, without running it."""

import argparse

from pgat_fast.cli.arguments import Subparsers, add_command, add_config_arguments, config_from


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `plan` to `subparsers`."""
    parser = add_command(subparsers, "plan", run)
    add_config_arguments(parser)
    parser.add_argument("--backend", metavar="NAME", help="auto, reference, torch or triton (default: run.backend)")
    parser.add_argument("--json", action="store_true", help="print JSON; bytes and FLOPs are integers")


def run(args: argparse.Namespace) -> int:
    """Estimate parameters, FLOPs and memory of a run without running it.

    FLOPs and tensor memory are counted by tracing a training step on tensors without
    data. On a CPU, the memory of the process is predicted from them to about 10 %.
    If the run would not fit into memory, a warning is logged; the exit code is still 0.
    """
    import json
    import logging
    from dataclasses import asdict

    config = config_from(args)
    from pgat_fast.plan import make_plan
    from pgat_fast.plan.text import as_text

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    plan = make_plan(config, args.backend)
    print(json.dumps(asdict(plan), indent=2) if args.json else as_text(plan))
    return 0
