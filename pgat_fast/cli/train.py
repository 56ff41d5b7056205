"""`pgat-fast train`: start or resume a training run."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pgat_fast.cli.arguments import (
    Subparsers,
    add_command,
    add_config_arguments,
    add_quiet_argument,
    config_from,
    start_logging,
)

if TYPE_CHECKING:
    from pgat_fast.config import Config


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `train` to `subparsers`."""
    parser = add_command(subparsers, "train", run)
    add_config_arguments(parser)
    text = (
        "resume the newest run with the configured name, or start a new run if there is none (auto, the default "
        "value); or resume from DIR, a run or a checkpoint, with the configuration stored in the run"
    )
    parser.add_argument("--resume", nargs="?", const="auto", metavar="auto|DIR", help=text)
    parser.add_argument("--max-steps", type=int, metavar="N", help="end training after N optimizer steps, then test")
    parser.add_argument("--max-minutes", type=float, metavar="M", help="end training after M minutes, then test")
    text = "auto (a GPU if there is one), cpu, cuda or cuda:N (default: run.device)"
    parser.add_argument("--device", metavar="NAME", help=text)
    text = "data-parallel training on N GPUs of this machine, or in N processes on a CPU"
    parser.add_argument("--devices", type=int, metavar="N", help=text)
    text = "with --devices: restart up to N times from the last checkpoint if a process fails (default: %(default)s)"
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help=text)
    add_quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train a model and test it against naive baselines.

    SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGHUP save a checkpoint and stop the run with
    exit code 128 plus the number of the signal (130, 143, 138, 129). A second signal after
    1.5 s or more stops it immediately. --resume continues from the checkpoint exactly.

    To train on several machines: torchrun ... -m pgat_fast train ...
    """
    from pgat_fast.distributed.environment import is_main
    from pgat_fast.errors import ConfigError
    from pgat_fast.training.signals import StopSignals

    for name, key in (
        ("max_steps", "training.max_steps"),
        ("max_minutes", "training.max_minutes"),
        ("device", "run.device"),
    ):
        value = getattr(args, name)
        args.overrides += [] if value is None else [f"{key}={value}"]
    if args.devices is not None:
        from pgat_fast.distributed.launch import launch

        return launch(args)
    if args.restarts:
        raise ConfigError("--restarts needs --devices; with torchrun use --max-restarts")
    # First, because the imports below load torch, which takes seconds, and a signal may come at any time.
    with StopSignals() as stop:
        start_logging(quiet=args.quiet or not is_main())
        config, resume = _config_and_resume(args)

        from pgat_fast.training.results import summary
        from pgat_fast.training.run import train

        folder, results = train(config, resume=resume, stop=stop, progress=not args.quiet)
    if not is_main():
        return 0
    print(summary(results))
    print(f"\nwritten to {folder}: " + ", ".join(sorted(path.name for path in folder.iterdir() if path.name[0] != ".")))
    return 0


def _config_and_resume(args: argparse.Namespace) -> "tuple[Config, Path | None]":
    """Return the configuration, and the run folder or checkpoint to resume, None for a new run."""
    from pgat_fast.distributed.environment import is_distributed, restart_count
    from pgat_fast.errors import ConfigError
    from pgat_fast.training.run_folder import checkpoint_of, locked

    if args.resume is None:
        return config_from(args), None
    if args.resume == "auto":
        config = config_from(args)
        resume = _newest_run(config)
        if resume is not None and not is_distributed():
            with locked(resume):
                pass
        return config, resume
    resume = Path(args.resume)
    if restart_count() and not resume.exists():  # the checkpoint that the job started from was deleted for newer ones
        resume = resume.parent
    folder, _ = checkpoint_of(resume)
    if not is_distributed():
        with locked(folder):  # fails at once, before anything else is loaded, if another process uses the folder
            pass
    if args.config is None:
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"{folder}/config.yaml: file not found: give the configuration of the run with --config")
        args.config = str(folder / "config.yaml")
    config = config_from(args)
    from pgat_fast.training.other_machine import check_resumable

    check_resumable(config, folder)
    return config, resume


def _newest_run(config: "Config") -> Path | None:
    """Return the newest run of the configured name; None, to start a new one, if it has saved no checkpoint."""
    import logging

    from pgat_fast.config import load_config
    from pgat_fast.errors import ConfigError
    from pgat_fast.training.run_folder import has_checkpoints, run_folders

    logger = logging.getLogger("pgat_fast")
    name, output = config.run.name, Path(config.run.output)
    for folder in run_folders(output, name):
        try:
            if load_config(folder / "config.yaml").run.name != name:
                continue
        except ConfigError as error:
            if has_checkpoints(folder):
                logger.warning("%s: this run cannot be resumed: %s", folder, error)
                continue
        if has_checkpoints(folder):
            return folder
        break
    logger.info("no run named %s in %s can be resumed: starting a new run", name, output)
    return None
