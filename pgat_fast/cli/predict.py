"""`pgat-fast predict`: forecast the days after the last row of a file."""

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pgat_fast.cli.arguments import (
    Subparsers,
    add_command,
    add_overrides_argument,
    add_price_arguments,
    add_run_arguments,
    price_options,
    start_logging,
    trading_days,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

SHOWN_LEVEL = 80
"""Level in percent of the interval that is printed; the file has all levels."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `predict` to `subparsers`."""
    parser = add_command(subparsers, "predict", run)
    add_run_arguments(parser)
    text = "a data file, or daily prices with the columns date, open, high, low and close"
    parser.add_argument("--from", dest="source", metavar="FILE.csv", required=True, help=text)
    text = "output file of the table; - is standard output"
    parser.add_argument("--out", metavar="FILE.csv", required=True, help=text)
    text = "close of the last day, if it cannot be derived from the data file"
    parser.add_argument("--last-close", type=float, metavar="X", help=text)
    text = (
        "calendar of the days to forecast: auto, nyse, weekdays, daily, weekly, monthly, or weekdays such as "
        "Sun,Mon,Tue,Wed,Thu (default: data.trading_days of the run)"
    )
    parser.add_argument("--trading-days", type=trading_days, metavar="CALENDAR", help=text)
    text = "auto (a GPU if there is one), cpu, cuda or cuda:N (default: %(default)s)"
    parser.add_argument("--device", default="auto", metavar="NAME", help=text)
    add_overrides_argument(parser)
    add_price_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Forecast the days after the last row of a file.

    RUN is a run, finished or not, or a sweep: then the forecast is the mean over the seeds
    of its best combination of settings.
    """
    from pathlib import Path

    from pgat_fast.errors import DataError
    from pgat_fast.forecasting.ensemble import predict_ensemble
    from pgat_fast.forecasting.load_run import load_run
    from pgat_fast.forecasting.predict import predict
    from pgat_fast.sweep.jobs import is_sweep, read_jobs
    from pgat_fast.sweep.table import best_members, ensemble_skill
    from pgat_fast.utils.io import write_atomically

    start_logging(quiet=True)
    _check_arguments(args)
    folder = Path(args.folder)
    swept = is_sweep(folder)
    members = best_members(folder, read_jobs(folder)) if swept else [folder]
    first = load_run(members[0], args.checkpoint, args.device, args.overrides)
    runs = [first, *(load_run(member, args.checkpoint, str(first.device), args.overrides) for member in members[1:])]
    options = {
        "last_close": args.last_close,
        "trading_days": args.trading_days,
        "options": price_options(args),
        "strict": args.strict,
    }
    forecast = predict_ensemble(runs, args.source, **options) if swept else predict(runs[0], args.source, **options)
    if swept:
        skill = ensemble_skill(members)["skill"] if args.checkpoint == "best" else {}
        notes = [*_assumptions(forecast.attrs, {}), *_ensemble_notes(members, skill)]
    else:
        notes = [*_assumptions(forecast.attrs, runs[0].results), _run_skill(forecast.attrs, runs[0].results)]

    content = forecast.to_csv(index=False, float_format="%.10g", date_format="%Y-%m-%d", lineterminator="\n")
    if args.out == "-":
        print(content, end="")
        print("\n".join(notes), file=sys.stderr)  # standard output holds the table alone
        return 0
    try:
        write_atomically(Path(args.out), content.encode())
    except OSError as error:
        raise DataError(f"{args.out}: cannot be written: {error.strerror or error}") from error
    print(_as_text(forecast), "", *notes, sep="\n")
    print(f"written to {args.out}: {len(forecast)} days, {forecast.shape[1]} columns")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    """Raise DataError or ConfigError for an output that cannot be a new file, and for overrides without effect."""
    from pathlib import Path

    from pgat_fast.errors import ConfigError, DataError

    out = Path(args.out)
    if args.out != "-" and (not out.name or out.is_dir()):
        raise DataError(f"{args.out}: not a file name: give --out a file to write")
    if args.out != "-" and out.exists() and Path(args.source).exists() and out.samefile(args.source):
        raise DataError(f"{args.out}: this is the input file: give --out another file name")
    for override in args.overrides:
        if override.partition("=")[0].strip().removeprefix("data.") in ("base_price", "path"):
            raise ConfigError(
                f"--set {override}: has no effect here: use --from for the file, --last-close for the price"
            )


def _as_text(forecast: "pd.DataFrame") -> str:
    """Return the table, aligned, with one interval only, rounded to six digits of its largest number."""
    import numpy as np

    points = [name for name in forecast.columns[2:] if "_lower_" not in name and "_upper_" not in name]
    bounds = [f"{points[-1]}_{end}_{SHOWN_LEVEL}" for end in ("lower", "upper")]
    names = [*points, *(name for name in bounds if name in forecast)]
    largest = max(float(np.abs(forecast[points].to_numpy()).max()), 1e-12)
    digits = min(max(5 - int(np.floor(np.log10(largest))), 0), 12)
    table = forecast[["date", "horizon", *names]].assign(date=forecast["date"].dt.strftime("%a %Y-%m-%d"))
    return str(table.to_string(index=False, float_format=f"{{:.{digits}f}}".format))


def _tested_checkpoint(attrs: Mapping[Any, Any], results: Mapping[str, Any]) -> str:
    """Return the name of the checkpoint that the test results belong to."""
    return str((results.get("checkpoints") or {}).get("best", attrs["checkpoint"]))


def _assumptions(attrs: Mapping[Any, Any], results: Mapping[str, Any]) -> list[str]:
    """Return a line each on the run, the calendar, the last close and the intervals of a forecast."""
    lines = [
        f"{attrs['run']}, checkpoint {attrs['checkpoint']}; last known day {attrs['last_date']}",
        f"days: calendar {attrs['calendar']}",
        *attrs["notes"],
    ]
    if attrs["last_close"] is not None:
        unit = "RELATIVE prices" if attrs["relative"] else "prices"
        lines.append(f"{unit}: last close {attrs['last_close']:.7g}, {attrs['last_close_from']}")
    intervals = attrs["intervals"]
    if intervals is None:
        return lines
    method = "quantiles of the mixture"
    if intervals["method"] == "conformal":
        method = f"conformal, from the errors on {intervals['calibration_windows']} validation windows"
    # The coverage was measured with the tested weights and does not apply to others.
    tested = _tested_checkpoint(attrs, results) == attrs["checkpoint"]
    coverage = (results.get("test") or {}).get("intervals") or {} if tested else {}
    shares = [
        f"{100 * level['coverage']['overall']:.0f} % for {100 * level['nominal']:g} %"
        for level in coverage.get("price") or coverage.get("scaled") or ()
        if level["nominal"] in intervals["levels"] and level["coverage"]["overall"] is not None
    ]
    missing = [f"{100 * level:g} %" for level in intervals["missing"]]
    lines.append(
        f"intervals: {method}"
        + (f"; coverage on the test windows: {', '.join(shares)}" if shares else "")
        + (f"; too few validation windows for {', '.join(missing)}" if missing else "")
    )
    return lines


def _run_skill(attrs: Mapping[Any, Any], results: Mapping[str, Any]) -> str:
    """Return a sentence on the skill of the run on its test windows."""
    caution = "Daily prices are nearly unpredictable. " if attrs["last_close"] is not None else ""
    test = results.get("test") or {}
    for units in ("price", "scaled"):
        if skill := (test.get(units) or {}).get("skill"):
            subject = (
                f"{_tested_checkpoint(attrs, results)} on {test.get('windows', 'its')} test windows, {units} units"
            )
            return caution + _describe_skill(subject, skill)
    return f"{caution}This run has not been tested against naive forecasts yet."


def _ensemble_notes(members: list["Path"], skill: Mapping[str, float | None]) -> list[str]:
    """Return lines on the members of the mean and on its skill, which is empty if it is unknown."""
    names = ", ".join(folder.name for folder in members)
    return [
        f"mean of {len(members)} runs, {names}; interval bounds are means over the runs",
        _describe_skill("the mean on the test windows, scaled units", skill)
        if skill
        else "The skill of the mean is known for the best checkpoints only.",
    ]


def _describe_skill(subject: str, skill: Mapping[str, float | None]) -> str:
    values = ", ".join(
        f"{name} {'unknown' if value is None else format(value, '+.4f')}" for name, value in skill.items()
    )
    return f"Skill of {subject}: {values} (1 - MSE / MSE of the naive forecast; positive if the model is better)."
