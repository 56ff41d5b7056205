"""`pgat-fast plan`: parameters, FLOPs and memory of a run, without running it."""

import argparse

from pgat_fast.cli.arguments import add_config_arguments, config_from

_EPILOG = """\
FLOPs and the bytes of tensors are counted on tensors without data. The memory of a process on the CPU is predicted from
them, within about a tenth. What will not fit is told as a warning; the exit code is 0 all the same.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `plan` to `subparsers`."""
    parser = subparsers.add_parser(
        "plan", help="parameters, FLOPs and memory of a run, without running it", epilog=_EPILOG
    )
    add_config_arguments(parser)
    parser.add_argument("--backend", metavar="B", help="auto, reference, torch or triton (default: run.backend)")
    parser.add_argument(
        "--json", action="store_true", help="print all of it as JSON; bytes and FLOPs are whole numbers"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan and return 0. Raises ConfigError, DataError or BackendError."""
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
