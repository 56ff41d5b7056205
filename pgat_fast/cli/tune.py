"""`pgat-fast tune`: find out which kernels make training faster on this GPU."""

import argparse
import math

from pgat_fast.cli.arguments import Subparsers, add_command, add_config_arguments, config_from, start_logging


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `tune` to `subparsers`."""
    parser = add_command(subparsers, "tune", run)
    add_config_arguments(parser)
    text = "time for which steps are taken, after the first ones (default: %(default)g)"
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help=text)


def run(args: argparse.Namespace) -> int:
    """Find out which kernels make training steps of a configuration faster on this GPU.

    Steps are taken in turns in plain PyTorch, with the kernels that the package lists as
    faster, and with all. The fastest choice is kept in the user's cache folder, by GPU,
    model, batch size, precision and versions; later runs with `run.backend: auto` use it.
    A long run on a GPU that is not known does this itself.
    """
    from pgat_fast.errors import BackendError, ConfigError
    from pgat_fast.model.precision import resolve_precision
    from pgat_fast.training.calibration import calibrate
    from pgat_fast.training.rng import restored_generators, seed_everything
    from pgat_fast.utils.device import resolve_device
    from pgat_kernels.dispatch import why_no_kernels

    if not 0 < args.seconds < math.inf:
        raise ConfigError(f"--seconds is {args.seconds:g}: choose a number above 0")
    start_logging(quiet=True)
    config = config_from(args)
    device = resolve_device(config.run.device)
    reason = why_no_kernels(device)
    if reason is not None:
        raise BackendError(f"there is nothing to find out: {reason}")
    with restored_generators():
        seed_everything(config.training.seed, deterministic=config.run.deterministic)
        choice = calibrate(config, device, resolve_precision(config.run.precision, device), args.seconds)
    print(choice.reason)
    return 0
