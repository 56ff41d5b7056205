"""`pgat-fast data build` and `pgat-fast data check`: write a data file, check one."""

import argparse

from pgat_fast.cli.arguments import add_config_arguments, config_from


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `data` to `subparsers`."""
    parser = subparsers.add_parser("data", help="build a data file, or check one")
    commands = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)

    build = commands.add_parser("build", help="write the 118 columns from prices and an ephemeris, without network")
    build.add_argument(
        "--prices",
        default="sp500",
        metavar="sp500|FILE.csv",
        help="daily prices: the S&P 500 from 1950 to 2015 (default), or a CSV with date, open, high, low and close",
    )
    build.add_argument(
        "--targets",
        choices=("returns", "levels"),
        default="returns",
        help="log(price / previous close) (default), or log(price)",
    )
    build.add_argument("--rows", type=int, metavar="N", help="keep the last N rows (default: all)")
    build.add_argument("--out", default="data/prepared_financial_data.csv", metavar="FILE", help="default: %(default)s")
    build.set_defaults(run=run_build)

    check = commands.add_parser("check", help="say what is wrong with a data file, by column and row")
    check.add_argument("file", metavar="FILE", help="the CSV file")
    add_config_arguments(check)
    check.set_defaults(run=run_check)


def run_build(args: argparse.Namespace) -> int:
    """Write the file, print a summary of it, and return 0."""
    from pathlib import Path

    from pgat_fast.data.build import build_file
    from pgat_fast.data.metadata import note_path

    report = build_file(Path(args.out), args.prices, args.targets, args.rows)
    close = f"close before the first row: {report.base_price:.10g}, noted in {note_path(report.path)}\n"
    print(
        f"{report.path}: {report.rows:,} rows from {report.first_date} to {report.last_date}, "
        f"{report.columns} columns, {report.seconds:.1f} s\n"
        + (close if args.targets == "returns" else "")
        + f"sha256 {report.sha256}"
    )
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Print one line per problem; return 1 if there are any, else 0.

    With a configuration, a file without such problems is also prepared as for training.
    """
    from pathlib import Path

    from pgat_fast.data.table import check_file
    from pgat_fast.errors import DataError, PgatError

    config = config_from(args)
    model, data = config.model, config.data.model_copy(update={"path": args.file})
    if not Path(args.file).is_file():
        raise DataError(f"{args.file}: there is no such file: name the CSV file to check")
    problems: list[object] = []
    if model.use_celestial_graph:  # without it any columns are allowed, and `load_splits` checks those in use
        problems += check_file(args.file, model.seq_len, model.pred_len, data.validation_length, data.test_length)
    if not problems and (args.config or args.overrides):
        import torch

        from pgat_fast.data.load import load_splits

        try:
            load_splits(data, model, torch.device("cpu"))
        except PgatError as error:
            problems.append(str(error).removeprefix(f"{args.file}: "))
    for problem in problems:
        print(f"{args.file}: {problem}")
    if not problems:
        print(f"{args.file}: no problem found")
    return 1 if problems else 0
