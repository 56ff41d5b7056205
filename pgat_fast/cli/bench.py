"""`pgat-fast bench`: measure speed and memory, check for regressions, profile, write the performance report."""

import argparse
from importlib import import_module

from pgat_fast.cli.arguments import add_overrides_argument

_EPILOG = """\
Benchmarks are in the repository, not in the installed package: run them in a clone.
`pytest bench --benchmark-only` times operators, parts, steps, forecasts and imports one by one.
"""
_STUDIES = ("scaling", "roofline", "ranks")
"""Subcommands in `bench.studies`."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `bench` to `subparsers`."""
    parser = subparsers.add_parser("bench", help="measure backends, check for regressions, profile", epilog=_EPILOG)
    kinds = parser.add_subparsers(metavar="WHAT", required=True)

    compare = kinds.add_parser("compare", help="time and memory of training steps, backend by backend: one table")
    _add_model_arguments(compare)
    compare.add_argument(
        "--backends", metavar="NAME[:WORD...],...", help="such as reference,torch:compiled:bf16 (default: all that run)"
    )
    compare.add_argument("--compiled", action="store_true", help="without --backends: also compiled, minutes more")
    compare.add_argument("--steps", type=int, default=25, help="of each process at most (default: %(default)s)")
    compare.add_argument("--processes", type=int, default=8, help="of each backend (default: %(default)s)")
    compare.add_argument("--json", metavar="FILE", help="write the figures here")
    compare.add_argument("--save", action="store_true", help="write them to bench/results/MACHINE/DATE/comparison.json")

    check = kinds.add_parser("check", help="what has become worse than the committed results; exit code 1 if something")
    check.add_argument("--exact", action="store_true", help="only what is the same on every machine: minutes, no noise")
    check.add_argument("--json", metavar="FILE", help="write what was measured here")

    profile = kinds.add_parser("profile", help="a trace for a browser, and the most expensive operators")
    _add_model_arguments(profile)
    profile.add_argument("--backend", default="torch", metavar="NAME[:WORD...]", help="(default: %(default)s)")
    profile.add_argument("--steps", type=int, default=3, help="to profile (default: %(default)s)")
    profile.add_argument("--out", default="profile", metavar="DIR", help="where to write (default: %(default)s)")

    scaling = kinds.add_parser("scaling", help="how time and memory grow with history, batch and bodies")
    add_overrides_argument(scaling)
    scaling.add_argument("--backends", default="reference,torch:eager", metavar="NAME[:WORD...],...")
    grows = ("history", "batch", "bodies")
    scaling.add_argument("--what", nargs="+", choices=grows, default=grows, help="what grows (default: all)")
    scaling.add_argument("--largest", type=int, metavar="N", help="leave larger sizes out")
    scaling.add_argument("--json", metavar="FILE", help="write the figures here")

    roofline = kinds.add_parser("roofline", help="how near operators come to what this machine can do")
    roofline.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    roofline.add_argument("--backends", default="reference,torch:eager", metavar="NAME[:WORD...],...")
    roofline.add_argument("--json", metavar="FILE", help="write the figures here")

    ranks = kinds.add_parser("ranks", help="what training on several devices costs: on paper, and checked over gloo")
    ranks.add_argument("--json", metavar="FILE", help="write the figures here")

    report = kinds.add_parser("report", help="write docs/performance.md, its plots and the README's table of speed")
    report.add_argument("--check", action="store_true", help="only compare them with the committed results")

    for name, subparser in kinds.choices.items():
        folder = "bench.studies" if name in _STUDIES else "bench"
        subparser.set_defaults(run=run, module=f"{folder}.{name}")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="the model (default: configs/quickstart.yaml)")
    add_overrides_argument(parser)
    parser.add_argument("--batch", type=int, default=1, help="windows of a step (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark and return its exit code. Raises ConfigError, or BackendError outside a clone."""
    from pgat_fast.errors import BackendError, ConfigError

    for name in ("batch", "steps", "processes"):
        if getattr(args, name, 1) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}: at least 1 is needed")
    try:
        module = import_module(args.module)
    except ModuleNotFoundError as error:
        if not (error.name and args.module.startswith(error.name)):
            raise
        raise BackendError("benchmarks are in the repository, not in the installed package: run in a clone") from error
    return int(module.run(args))
