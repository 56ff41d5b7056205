"""`pgat-fast train`: one training run."""

import argparse

from pgat_fast.cli.arguments import add_config_arguments, config_from


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `train` to `subparsers`."""
    parser = subparsers.add_parser("train", help="train a model, test it beside naive baselines")
    add_config_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no log lines but warnings")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and print the results; returns 0."""
    import logging
    import sys

    from pgat_fast.training.results import summary
    from pgat_fast.training.trainer import train

    level = logging.WARNING if args.quiet else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(message)s")
    config = config_from(args)
    folder, results = train(config, progress=not args.quiet)
    print(summary(results))
    print(f"\nwritten to {folder}: results.json, best.safetensors, config.yaml")
    return 0
