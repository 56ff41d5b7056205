"""`pgat-fast bench`: measure speed and memory, check for regressions, profile, write the performance report."""

import argparse
from importlib import import_module

from pgat_fast.cli.arguments import Subparsers, add_command, add_group, add_overrides_argument

_EPILOG = """\
Benchmarks need a clone of the repository; they are not part of the installed package.
`pytest bench --benchmark-only` times operators, parts of the model, training steps,
forecasts and imports one by one.
"""
_STUDIES = ("scaling", "roofline", "ranks")
"""Subcommands in `bench.studies`."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `bench` to `subparsers`."""
    commands = add_group(subparsers, "bench", "Run benchmarks, profile, check for regressions", _EPILOG)
    compare = add_command(commands, "compare", run, "Compare time and memory of training steps between backends.")
    _add_model_arguments(compare)
    _add_backends_argument(compare, None, "all that are available")
    text = "without --backends: also measure compiled backends, which takes minutes longer"
    compare.add_argument("--compiled", action="store_true", help=text)
    text = "maximum number of steps per process (default: %(default)s)"
    compare.add_argument("--steps", type=int, default=25, metavar="N", help=text)
    text = "number of processes per backend (default: %(default)s)"
    compare.add_argument("--processes", type=int, default=8, metavar="N", help=text)
    _add_json_argument(compare)
    compare.add_argument(
        "--save", action="store_true", help="write the results to bench/results/MACHINE/DATE/comparison.json"
    )

    text = "Check for regressions from the committed results.\n\nExit code 1 if there is a regression."
    check = add_command(commands, "check", run, text)
    text = "check only values that are the same on every machine; takes minutes"
    check.add_argument("--exact", action="store_true", help=text)
    _add_json_argument(check)

    profile = add_command(commands, "profile", run, "Write a trace of training steps and list the slowest operators.")
    _add_model_arguments(profile)
    text = "backend to profile (default: %(default)s)"
    profile.add_argument("--backend", default="torch", metavar="NAME[:WORD...]", help=text)
    text = "number of steps to profile (default: %(default)s)"
    profile.add_argument("--steps", type=int, default=3, metavar="N", help=text)
    profile.add_argument("--out", default="profile", metavar="DIR", help="output folder (default: %(default)s)")

    text = "Measure time and memory as functions of history, batch size and number of bodies."
    scaling = add_command(commands, "scaling", run, text)
    add_overrides_argument(scaling)
    _add_backends_argument(scaling)
    dimensions = ("history", "batch", "bodies")
    text = "dimensions to vary (default: all)"
    scaling.add_argument("--what", nargs="+", choices=dimensions, default=dimensions, help=text)
    scaling.add_argument("--largest", type=int, metavar="N", help="skip sizes above N")
    _add_json_argument(scaling)

    roofline = add_command(commands, "roofline", run, "Compare operators with the peak performance of this machine.")
    text = "auto, cpu, cuda or cuda:N (default: %(default)s)"
    roofline.add_argument("--device", default="auto", metavar="NAME", help=text)
    _add_backends_argument(roofline)
    _add_json_argument(roofline)

    text = "Model the cost of data-parallel training.\n\nThe communication is checked with processes on this machine."
    _add_json_argument(add_command(commands, "ranks", run, text))

    text = "Write docs/performance.md, its plots and the table of speed in README.md."
    report = add_command(commands, "report", run, text)
    report.add_argument("--check", action="store_true", help="compare them with the committed results, write nothing")

    for name, parser in commands.choices.items():
        folder = "bench.studies" if name in _STUDIES else "bench"
        parser.set_defaults(module=f"{folder}.{name}")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings (default: configs/quickstart.yaml)")
    add_overrides_argument(parser)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="batch size (default: %(default)s)")


def _add_backends_argument(
    parser: argparse.ArgumentParser, default: str | None = "reference,torch:eager", default_text: str = "%(default)s"
) -> None:
    text = f"backends to measure, for example reference,torch:compiled:bf16 (default: {default_text})"
    parser.add_argument("--backends", default=default, metavar="NAME[:WORD...],...", help=text)


def _add_json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="also write the results to FILE as JSON")


def run(args: argparse.Namespace) -> int:
    """Run the benchmark of `args.module`. Raises ConfigError, or BackendError outside a clone."""
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
