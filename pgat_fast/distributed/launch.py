"""Launcher for `pgat-fast train --devices N`: torchrun on one machine, with the exit code of the run."""

import argparse
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pgat_fast.distributed.environment import EXIT_CODE_FILE, is_distributed
from pgat_fast.errors import ConfigError
from pgat_fast.training.signals import SIGNALS
from pgat_fast.utils.cores import usable_cores

SHUTDOWN_SECONDS = 90
"""Time after a signal in which the ranks can save a checkpoint and end before torchrun kills them."""


def launch(args: argparse.Namespace) -> int:
    """Run `pgat-fast train` in `args.devices` ranks and return the exit code of the run.

    Raises ConfigError, before any rank starts, if the devices do not exist or the configuration is invalid.
    """
    from pgat_fast.cli.arguments import config_from
    from pgat_fast.training.run_folder import checkpoint_of

    if is_distributed():
        raise ConfigError("--devices: this process was started by torchrun: omit --devices")
    if args.devices < 1 or args.restarts < 0:
        raise ConfigError(
            f"--devices {args.devices} --restarts {args.restarts}: --devices must be at least 1, --restarts at least 0"
        )
    if args.resume not in (None, "auto"):
        folder, _ = checkpoint_of(Path(args.resume))
        args.config = args.config or str(folder / "config.yaml")
    _check_devices(args.devices, config_from(args).run.device)
    return run_ranks(rank_arguments(args), args.devices, args.restarts)


def _check_devices(count: int, device: str) -> None:
    import torch

    from pgat_fast.utils.device import resolve_device

    if ":" in device:
        raise ConfigError(f"--devices {count}: run.device is {device}, a single GPU: set it to cuda or auto")
    if resolve_device(device).type == "cuda" and torch.cuda.device_count() < count:
        raise ConfigError(f"--devices {count}: this machine has {torch.cuda.device_count()} GPUs: lower --devices")


def rank_arguments(args: argparse.Namespace) -> list[str]:
    """Return the arguments of `python -m pgat_fast` in every rank: `args` without the number of devices."""
    arguments = ["train"]
    arguments += [] if args.config is None else ["--config", args.config]
    arguments += [] if args.resume is None else ["--resume", args.resume]
    arguments += ["--quiet"] if args.quiet else []
    return arguments + (["--set", *args.overrides] if args.overrides else [])


def run_ranks(arguments: list[str], count: int, restarts: int) -> int:
    """Run `python -m pgat_fast` with `arguments` in `count` ranks and return the exit code of the run.

    Args:
        arguments: arguments of the command line.
        count: number of ranks.
        restarts: number of times that torchrun restarts all ranks after one has failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=f"pgat-fast-{uuid.uuid4().hex}", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=0.1,
        signals_to_handle=",".join(forwarded_signals()), shutdown_timeout=SHUTDOWN_SECONDS,
    )  # fmt: skip
    start: Any = elastic_launch(config, sys.executable)
    with TemporaryDirectory() as folder:
        code_file = Path(folder, "code")
        variables = {
            EXIT_CODE_FILE: str(code_file),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // count))),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # every start of the ranks gets an empty key-value store
        }
        try:
            with environment_variables(variables):
                start("-m", "pgat_fast", *arguments)
        except ChildFailedError as error:
            code = error.get_first_failure()[1].exitcode
            return code if code > 0 else 128 - code
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        return int(code_file.read_text(encoding="utf-8")) if code_file.exists() else 0


@contextmanager
def environment_variables(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process, and of those that it starts, within the context."""
    previous = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
            if name in previous:
                os.environ[name] = previous[name]


def forwarded_signals() -> list[str]:
    """Return the names of the signals that torchrun forwards to the ranks: those that stop a run.

    An ignored signal, such as SIGHUP under nohup, is left out; SIGINT is always included.
    """
    available = [name for name in SIGNALS if hasattr(signal, name)]
    return [name for name in available if name == "SIGINT" or signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]
