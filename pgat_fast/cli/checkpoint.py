"""`pgat-fast checkpoint verify`, `export` and `import`: check checkpoints, exchange weights with the existing model."""

import argparse
from pathlib import Path

from pgat_fast import exit_codes
from pgat_fast.cli.arguments import add_config_arguments, config_from, start_logging


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `checkpoint` to `subparsers`."""
    parser = subparsers.add_parser("checkpoint", help="verify, export or import checkpoints")
    commands = parser.add_subparsers(dest="checkpoint_command", metavar="COMMAND", required=True)

    verify = commands.add_parser("verify", help="read and verify one or all checkpoints, list the faults")
    verify.add_argument("path", metavar="PATH", help="a run, its folder `checkpoints`, or one checkpoint")
    verify.set_defaults(run=run_verify)

    export = commands.add_parser("export", help="write weights in the original layout, for the existing model")
    export.add_argument("path", metavar="RUN_OR_CHECKPOINT", help="folder of a run, or of one checkpoint")
    export.add_argument("--out", required=True, metavar="FILE", help="*.pth (torch.save) or *.safetensors")
    export.add_argument(
        "--checkpoint", default="best", metavar="best|latest|NAME", help="which one of a run (default: %(default)s)"
    )
    export.set_defaults(run=run_export)

    importer = commands.add_parser(
        "import",
        help="create a run from weights in the original layout",
        description="Create a run from weights in the original layout, to evaluate, predict with or train further "
        "(train --resume RUN). Existing weights need `compatibility: original` in the configuration. Columns are "
        "scaled by the training rows of the configured data file.",
    )
    importer.add_argument("file", metavar="FILE", help="a state dict (torch.save), or *.safetensors")
    add_config_arguments(importer)
    importer.add_argument("--out", required=True, metavar="RUN", help="folder to create, such as runs/imported")
    importer.set_defaults(run=run_import)


def run_verify(args: argparse.Namespace) -> int:
    """Print every checkpoint with OK or its faults; return 0 if all are good, else 1."""
    from pgat_fast.training.checkpoint import verify_checkpoint

    code = exit_codes.SUCCESS
    for path in _checkpoints_at(Path(args.path)):
        faults = verify_checkpoint(path)
        print(f"{path}: {'; '.join(fault.removeprefix(f'{path}/') for fault in faults) or 'OK'}")
        code = exit_codes.FAULTS if faults else code
    return code


def _checkpoints_at(path: Path) -> list[Path]:
    from pgat_fast.errors import CheckpointError
    from pgat_fast.training.checkpoint import find_checkpoints
    from pgat_fast.training.manifest import MANIFEST, NAME
    from pgat_fast.training.run_folder import CHECKPOINTS

    is_run = (path / CHECKPOINTS).is_dir()
    if not is_run and ((path / MANIFEST).exists() or (path.exists() and NAME.fullmatch(path.name))):
        return [path]
    root = path / CHECKPOINTS if is_run else path
    checkpoints = find_checkpoints(root)
    if not checkpoints:
        reason = "no checkpoint there" if path.exists() else "there is no such folder"
        raise CheckpointError(f"{path}: {reason}: give a run, its folder {CHECKPOINTS}, or a checkpoint")
    return checkpoints


def run_export(args: argparse.Namespace) -> int:
    """Write the file, print the name of its checkpoint, and return 0."""
    start_logging(quiet=True)
    from pgat_fast.training.import_export import export_checkpoint

    checkpoint = export_checkpoint(Path(args.path), Path(args.out), args.checkpoint)
    print(f"{args.out}: {checkpoint} in the original layout")
    return exit_codes.SUCCESS


def run_import(args: argparse.Namespace) -> int:
    """Create the run, print how to use it, and return 0."""
    start_logging(quiet=False)
    from pgat_fast.training.import_export import import_checkpoint

    config = config_from(args)
    if config.model.compatibility != "original":
        import logging

        logging.getLogger(__name__).warning(
            "model.compatibility is corrected: weights that were trained with the existing model need "
            "--set model.compatibility=original to compute what they were trained for"
        )
    path = import_checkpoint(Path(args.file), config, Path(args.out))
    print(
        f"{path}: the weights of {args.file}\n"
        f"evaluate it with pgat-fast evaluate {args.out}, train it further with pgat-fast train --resume {args.out}"
    )
    return exit_codes.SUCCESS
