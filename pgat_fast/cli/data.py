"""`pgat-fast data build` and `pgat-fast data check`: write a data file, check one."""

import argparse

from pgat_fast.cli.arguments import (
    Subparsers,
    add_command,
    add_config_arguments,
    add_group,
    add_price_arguments,
    add_strict_argument,
    config_from,
    price_options,
    trading_days,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `data` to `subparsers`."""
    commands = add_group(subparsers, "data", "Build or check a data file")
    build = add_command(commands, "build", run_build)
    text = (
        "sp500 (1950 to 2015), or a text file (also gzip, zip, bzip2 or xz) with the columns date, open, high, low and "
        "close (default: %(default)s)"
    )
    build.add_argument("--prices", default="sp500", metavar="sp500|FILE.csv", help=text)
    text = "write log(price / previous close) or log(price) (default: %(default)s)"
    build.add_argument("--targets", choices=("returns", "levels"), default="returns", help=text)
    build.add_argument("--rows", type=int, metavar="N", help="write the last N rows only (default: all rows)")
    text = (
        "calendar of the rows: auto, nyse, weekdays, daily, weekly, monthly, or weekdays such as Sun,Mon,Tue,Wed,Thu "
        "(default: %(default)s)"
    )
    build.add_argument("--trading-days", type=trading_days, default="auto", metavar="CALENDAR", help=text)
    out = "data/prepared_financial_data.csv"
    build.add_argument("--out", default=out, metavar="FILE", help="output file (default: %(default)s)")
    add_price_arguments(build)
    check = add_command(commands, "check", run_check)
    check.add_argument("file", metavar="FILE", help="CSV file to check")
    add_strict_argument(check)
    add_config_arguments(check)


def run_build(args: argparse.Namespace) -> int:
    """Write a data file of 118 columns from prices and an ephemeris.

    Needs no network: the S&P 500 prices and the ephemeris are installed packages.
    """
    from pathlib import Path

    from pgat_fast.data.build import build_file
    from pgat_fast.data.metadata import note_path

    report = build_file(
        Path(args.out),
        args.prices,
        args.targets,
        args.rows,
        options=price_options(args),
        trading_days=args.trading_days,
        strict=args.strict,
    )
    for note in report.notes:
        print(note)
    close = f"close before the first row: {report.base_price:.10g}, stored in {note_path(report.path)}\n"
    print(
        f"{report.path}: {report.rows:,} rows from {report.first_date} to {report.last_date}, "
        f"{report.columns} columns, {report.seconds:.1f} s\n"
        + (close if args.targets == "returns" else "")
        + f"sha256 {report.sha256}"
    )
    return 0


def run_check(args: argparse.Namespace) -> int:
    """List the problems of a data file by row and column.

    Warnings are printed too; --strict refuses them (exit code 2). With --config or --set,
    also check whether the file can be used for training with
    these settings. Exit code 1 if there are problems.
    """
    from pathlib import Path

    import torch

    from pgat_fast.data.history_checks import Findings, raise_findings
    from pgat_fast.data.load import columns_in_use, examine_table, split_table
    from pgat_fast.data.metadata import read_note
    from pgat_fast.data.table import Table, check_table, read_table
    from pgat_fast.errors import DataError, PgatError

    config = config_from(args)
    model, data = config.model, config.data.model_copy(update={"path": args.file})
    if not Path(args.file).is_file():
        raise DataError(f"{args.file}: file not found: give the path of the CSV file to check")
    problems: list[str] = []
    findings = Findings(data.trading_days)
    table: Table | None = None
    try:
        if model.use_celestial_graph:
            sizes = model.seq_len, model.pred_len, data.validation_length, data.test_length
            faults, table = check_table(args.file, *sizes)
            problems += map(str, faults)
        else:  # any columns are allowed
            table = read_table(args.file, columns_in_use(data, model))
        if table is not None:
            note = read_note(table)
            findings = examine_table(table, note, data)
            if not (problems or findings.refusal) and (args.config or args.overrides):
                split_table(table, note, data, model, torch.device("cpu"))
    except PgatError as error:
        problems.append(str(error).removeprefix(f"{args.file}: "))
    if args.strict and not problems:
        raise_findings(args.file, findings, strict=True)
    problems += [findings.refusal] if findings.refusal else []
    for problem in problems:
        print(f"{args.file}: {problem}")
    for warning in findings.warnings:
        print(f"{args.file}: warning: {warning}")
    if not problems:
        print(f"{args.file}: no problems found")
    return 1 if problems else 0
