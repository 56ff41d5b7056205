"""`pgat-fast checkpoint verify`, `export` and `import`: check checkpoints, exchange weights with the existing model."""

import argparse
from pathlib import Path

from pgat_fast import exit_codes
from pgat_fast.cli.arguments import Subparsers, add_command, add_config_arguments, add_group, config_from, start_logging


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `checkpoint` to `subparsers`."""
    commands = add_group(subparsers, "checkpoint", "Verify, export or import checkpoints")
    verify = add_command(commands, "verify", run_verify)
    verify.add_argument("path", metavar="PATH", help="a run, its folder `checkpoints`, or a checkpoint")
    export = add_command(commands, "export", run_export)
    export.add_argument("path", metavar="RUN|CHECKPOINT", help="folder of a run or of a checkpoint")
    export.add_argument("--out", required=True, metavar="FILE", help="output file: *.pth (torch.save) or *.safetensors")
    text = "checkpoint of the run to export (default: %(default)s)"
    export.add_argument("--checkpoint", default="best", metavar="best|latest|NAME", help=text)
    importer = add_command(commands, "import", run_import)
    importer.add_argument("file", metavar="FILE", help="weights: a file of torch.save, or *.safetensors")
    text = "which weights to take if the file holds several that fit, for example ema"
    importer.add_argument("--key", metavar="NAME", help=text)
    add_config_arguments(importer)
    importer.add_argument("--out", required=True, metavar="RUN", help="folder to create, for example runs/imported")


def run_verify(args: argparse.Namespace) -> int:
    """Verify the checksums of one or all checkpoints.

    Exit code 1 if a checkpoint is damaged.
    """
    from pgat_fast.training.checkpoint import verify_checkpoint

    code = exit_codes.SUCCESS
    for path in _checkpoints_at(Path(args.path)):
        faults = verify_checkpoint(path)
        print(f"{path}: {'; '.join(fault.removeprefix(f'{path}/') for fault in faults) or 'OK'}")
        code = exit_codes.FAULTS if faults else code
    return code


def _checkpoints_at(path: Path) -> list[Path]:
    from pgat_fast.errors import CheckpointError
    from pgat_fast.training.manifest import MANIFEST, NAME, find_checkpoints
    from pgat_fast.training.run_folder import CHECKPOINTS

    is_run = (path / CHECKPOINTS).is_dir()
    if not is_run and ((path / MANIFEST).exists() or (path.exists() and NAME.fullmatch(path.name))):
        return [path]
    root = path / CHECKPOINTS if is_run else path
    checkpoints = find_checkpoints(root)
    if not checkpoints:
        reason = "no checkpoint found" if path.exists() else "there is no such folder"
        raise CheckpointError(f"{path}: {reason}: give a run, its folder {CHECKPOINTS}, or a checkpoint")
    return checkpoints


def run_export(args: argparse.Namespace) -> int:
    """Write weights in the layout of the existing model."""
    start_logging(quiet=True)
    from pgat_fast.training.original_checkpoints import export_checkpoint

    checkpoint = export_checkpoint(Path(args.path), Path(args.out), args.checkpoint)
    print(f"{args.out}: {checkpoint} in the layout of the existing model")
    return exit_codes.SUCCESS


def run_import(args: argparse.Namespace) -> int:
    """Create a run from weights of the existing model.

    The new run can be evaluated, used for forecasts, or trained further with
    `pgat-fast train --resume RUN`. Weights of the existing model need the setting
    model.compatibility=original. Scalers are computed from the training rows of the
    configured data file.

    The weights may be anywhere in the file and have a prefix before all names. Whatever else
    a training script saved with them is ignored; nothing in the file is executed.
    """
    start_logging(quiet=False)
    from pgat_fast.training.original_checkpoints import import_checkpoint

    config = config_from(args)
    if config.model.compatibility != "original":
        import logging

        logging.getLogger(__name__).warning(
            "model.compatibility is corrected, but weights of the existing model need "
            "--set model.compatibility=original to give the same forecasts"
        )
    path = import_checkpoint(Path(args.file), config, Path(args.out), args.key)
    print(
        f"{path}: the weights of {args.file}\n"
        f"use `pgat-fast evaluate {args.out}` to test the run, `pgat-fast train --resume {args.out}` to train it"
    )
    return exit_codes.SUCCESS
