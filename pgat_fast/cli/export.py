"""`pgat-fast export`: write a run as one file that forecasts without this package."""

import argparse
from typing import Any

from pgat_fast.cli.arguments import Subparsers, add_command, add_overrides_argument, add_run_arguments, start_logging


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `export` to `subparsers`."""
    parser = add_command(subparsers, "export", run)
    add_run_arguments(parser)
    text = "output file: *.pt2 (torch.export), or *.onnx, which needs the packages of pgat-fast[onnx]"
    parser.add_argument("--out", metavar="FILE", required=True, help=text)
    text = "format of the file (default: that of its name)"
    parser.add_argument("--format", dest="file_format", choices=("pt2", "onnx"), help=text)
    text = "history that the file is checked with: a data file or daily prices (default: data.path of the run)"
    parser.add_argument("--from", dest="source", metavar="FILE.csv", help=text)
    text = "close of the last day, if it cannot be derived from the data file"
    parser.add_argument("--last-close", type=float, metavar="X", help=text)
    text = "device that the file computes on: cpu, cuda, cuda:N or auto (default: %(default)s)"
    parser.add_argument("--device", default="cpu", metavar="NAME", help=text)
    parser.add_argument("--json", action="store_true", help="print the metadata of the file as JSON")
    add_overrides_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Write a run as one file that forecasts without this package.

    The file contains the weights, the scalers and the construction of the decoder input. It
    takes the unscaled history of any number of windows and returns prices; torch alone loads
    it (docs/export.md). Its forecast is compared with that of `pgat-fast predict` before it
    is written: if they differ by more than rounding explains, nothing is written.
    """
    import json
    from pathlib import Path

    from pgat_fast.errors import DataError
    from pgat_fast.forecasting.export import export_run
    from pgat_fast.forecasting.load_run import load_run

    start_logging(quiet=True)
    out = Path(args.out)
    if not out.name or out.is_dir():
        raise DataError(f"{args.out}: not a file name: give --out a file to write")
    loaded = load_run(args.folder, args.checkpoint, args.device, args.overrides)
    metadata = export_run(loaded, out, args.source, file_format=args.file_format, last_close=args.last_close)
    print(json.dumps(metadata, indent=2) if args.json else _as_text(args.out, metadata))
    return 0


def _as_text(out: str, metadata: dict[str, Any]) -> str:
    check = metadata["check"]
    lines = [f"{out}: {metadata['run']}, checkpoint {metadata['checkpoint']}, for {metadata['device']}"]
    for title in ("inputs", "outputs"):
        tensors = (f"{name} {x['dtype']} [{', '.join(map(str, x['shape']))}]" for name, x in metadata[title].items())
        lines.append(f"{title}: {', '.join(tensors)}")
    history = f"the days after {check['last_date']} of {check['source']}"
    if check["deviation"] is None:
        return "\n".join([*lines, f"not checked with {history}"])
    deviations = (f"{name} {value:.1e} ({check['bound'][name]:.1e})" for name, value in check["deviation"].items())
    return "\n".join(
        [*lines, f"checked with {history}; relative deviation from predict (allowed): {', '.join(deviations)}"]
    )
