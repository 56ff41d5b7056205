"""`pgat-fast bench`: measure speed and memory, check for regressions, profile, write the performance report."""

import argparse
from importlib import import_module

from pgat_fast.cli.arguments import add_overrides_argument

_EPILOG = """\
The benchmarks are in the repository, not in the installed package: run them in a clone.
`pytest bench --benchmark-only` times operators, parts, steps, forecasts and imports one by one.
"""
_STUDIES = ("scaling", "roofline", "ranks")
"""Subcommands in `bench.studies`."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `bench` to `subparsers`."""
    parser = subparsers.add_parser("bench", help="measure backends, check for regressions, profile", epilog=_EPILOG)
    kinds = parser.add_subparsers(metavar="WHAT", required=True)

    compare = kinds.add_parser("compare", help="compare time and memory of training steps of several backends")
    _add_model_arguments(compare)
    compare.add_argument(
        "--backends", metavar="NAME[:WORD...],...", help="such as reference,torch:compiled:bf16 (default: all that run)"
    )
    compare.add_argument("--compiled", action="store_true", help="without --backends: also compiled, minutes more")
    compare.add_argument("--steps", type=int, default=25, help="most steps of a process (default: %(default)s)")
    compare.add_argument("--processes", type=int, default=8, help="processes of a backend (default: %(default)s)")
    compare.add_argument("--save", action="store_true", help="write them to bench/results/MACHINE/DATE/comparison.json")

    check = kinds.add_parser("check", help="find regressions against the committed results; exit code 1 if any")
    check.add_argument("--exact", action="store_true", help="only what is the same on every machine: minutes, no noise")

    profile = kinds.add_parser("profile", help="write a trace and the most expensive operators of a training step")
    _add_model_arguments(profile)
    profile.add_argument("--backend", default="torch", metavar="NAME[:WORD...]", help="(default: %(default)s)")
    profile.add_argument("--steps", type=int, default=3, help="steps to profile (default: %(default)s)")
    profile.add_argument("--out", default="profile", metavar="DIR", help="where to write (default: %(default)s)")

    scaling = kinds.add_parser("scaling", help="measure how time and memory grow with history, batch and bodies")
    add_overrides_argument(scaling)
    grows = ("history", "batch", "bodies")
    scaling.add_argument("--what", nargs="+", choices=grows, default=grows, help="what grows (default: all)")
    scaling.add_argument("--largest", type=int, metavar="N", help="leave larger sizes out")

    roofline = kinds.add_parser("roofline", help="compare operators with the limits of this machine")
    roofline.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    for study in (scaling, roofline):
        study.add_argument("--backends", default="reference,torch:eager", metavar="NAME[:WORD...],...")

    ranks = kinds.add_parser("ranks", help="model the cost of training on several devices, and check it over gloo")
    for measuring in (compare, check, scaling, roofline, ranks):
        measuring.add_argument("--json", metavar="FILE", help="write the results to this file")

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
    """Run the benchmark and return its exit code. Raises ConfigError, or BackendError where there is no clone."""
    from pgat_fast.errors import BackendError, ConfigError

    for name in ("batch", "steps", "processes"):
        if getattr(args, name, 1) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}: at least 1 is needed")
    try:
        module = import_module(args.module)
    except ModuleNotFoundError as error:
        if not (error.name and args.module.startswith(error.name)):
            raise
        raise BackendError(
            "the benchmarks are not part of the installed package: clone the repository, run "
            "`pip install --editable .` in the clone, and repeat this command there"
        ) from error
    return int(module.run(args))
