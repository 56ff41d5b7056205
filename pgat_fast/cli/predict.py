"""`pgat-fast predict`: forecast the days after the last row of a file."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pgat_fast.cli.arguments import add_overrides_argument, start_logging

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

SHOWN_LEVEL = 80
"""Level in percent of the interval that is printed; the file has all levels."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `predict` to `subparsers`."""
    parser = subparsers.add_parser("predict", help="forecast the days after the last row of a file")
    parser.add_argument(
        "folder", metavar="RUN", help="folder of a run, finished or not, or of a sweep: the mean of its best seeds"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE.csv",
        required=True,
        help="a data file, or daily prices: date, open, high, low and close",
    )
    parser.add_argument(
        "--out", metavar="FILE.csv", required=True, help="where to write the table; - is standard output"
    )
    parser.add_argument(
        "--checkpoint", default="best", metavar="best|latest|NAME", help="which weights (default: %(default)s)"
    )
    parser.add_argument(
        "--last-close", type=float, metavar="X", help="close of the last day, where a data file does not tell it"
    )
    parser.add_argument(
        "--trading-days",
        choices=("auto", "nyse", "weekdays", "daily"),
        help="which days to forecast (default: data.trading_days of the run)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: %(default)s)"
    )
    add_overrides_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the table, print it, and return 0."""
    from pathlib import Path

    from pgat_fast.errors import ConfigError, DataError
    from pgat_fast.forecasting.ensemble import predict_ensemble
    from pgat_fast.forecasting.load_run import load_run
    from pgat_fast.forecasting.predict import predict
    from pgat_fast.sweep.jobs import is_sweep, read_jobs
    from pgat_fast.sweep.table import best_members, ensemble_skill
    from pgat_fast.utils.io import write_atomically

    start_logging(quiet=True)
    to_stdout = args.out == "-"
    out = Path(args.out)
    if not to_stdout and (not out.name or out.is_dir()):
        raise DataError(f"{args.out}: this names no file to write to")
    if not to_stdout and out.exists() and Path(args.source).exists() and out.samefile(args.source):
        raise DataError(f"{args.out}: this is the file that is read: give the forecast another name")
    for override in args.overrides:
        if override.partition("=")[0].strip().removeprefix("data.") in ("base_price", "path"):
            raise ConfigError(f"--set {override}: of no effect here: --from names the file, --last-close the price")
    folder = Path(args.folder)
    swept = is_sweep(folder)
    members = best_members(folder, read_jobs(folder)) if swept else [folder]
    runs = [load_run(member, args.checkpoint, args.device, args.overrides) for member in members]
    options = {"last_close": args.last_close, "trading_days": args.trading_days}
    forecast = predict_ensemble(runs, args.source, **options) if swept else predict(runs[0], args.source, **options)
    content = forecast.to_csv(index=False, float_format="%.10g", date_format="%Y-%m-%d", lineterminator="\n")
    if to_stdout:
        print(content, end="")
    else:
        try:
            write_atomically(out, content.encode())
        except OSError as error:
            raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error
    # Standard output must hold the table alone.
    stream = sys.stderr if to_stdout else sys.stdout
    if not to_stdout:
        print(_as_text(forecast) + "\n", file=stream)
    # The coverage measured for one member does not apply to the intervals of the mean.
    remarks = _remarks(forecast.attrs, {} if swept else runs[0].results)
    if swept:
        remarks[-1:] = _of_ensemble(members, ensemble_skill(members) if args.checkpoint == "best" else None)
    print("\n".join(remarks), file=stream)
    if not to_stdout:
        print(f"written to {out}: {len(forecast)} days, {forecast.shape[1]} columns")
    return 0


def _as_text(forecast: "pd.DataFrame") -> str:
    """Return the table, aligned, with one interval only, rounded to six digits of its largest number."""
    import numpy as np

    points = [name for name in forecast.columns[2:] if "_lower_" not in name and "_upper_" not in name]
    last = points[-1]
    names = [
        *points,
        *(name for name in forecast if name in (f"{last}_lower_{SHOWN_LEVEL}", f"{last}_upper_{SHOWN_LEVEL}")),
    ]
    largest = max(float(np.abs(forecast[points].to_numpy()).max()), 1e-12)
    digits = min(max(5 - int(np.floor(np.log10(largest))), 0), 12)
    table = forecast[["date", "horizon", *names]].assign(date=forecast["date"].dt.strftime("%a %Y-%m-%d"))
    return str(table.to_string(index=False, float_format=f"{{:.{digits}f}}".format))


def _remarks(attrs: Mapping[Any, Any], results: Mapping[str, Any]) -> list[str]:
    """Return lines on the assumptions of the forecast and its reliability. Warnings report everything else."""
    lines = [f"{attrs['run']}, checkpoint {attrs['checkpoint']}; last known day {attrs['last_date']}"]
    lines.append(f"days: calendar {attrs['calendar']}")
    if attrs["last_close"] is not None:
        unit = "RELATIVE prices" if attrs["relative"] else "prices"
        lines.append(f"{unit}: last close {attrs['last_close']:.7g}, {attrs['last_close_from']}")
    tested = (results.get("checkpoints") or {}).get("best", attrs["checkpoint"])
    if attrs["intervals"] is not None:
        # The coverage was measured with the tested weights and applies to no others.
        lines.append(f"intervals: {_intervals(attrs['intervals'], results if tested == attrs['checkpoint'] else {})}")
    caution = "Daily prices are nearly unpredictable. " if attrs["last_close"] is not None else ""
    lines.append(caution + _skill(results, tested))
    return lines


def _of_ensemble(members: Sequence["Path"], found: Mapping[str, Any] | None) -> list[str]:
    """Return lines on the members of the mean and on its skill; `found` is None if the skill is unknown."""
    prefix = f"mean of {len(members)} runs, {', '.join(folder.name for folder in members)}; "
    if found is None:
        return [prefix + "bounds of intervals are the means of theirs; the skill is known of the best weights only"]
    skill = ", ".join(f"{name} {value:+.4f}" for name, value in found["skill"].items() if value is not None)
    return [
        prefix + "bounds of intervals are the means of theirs",
        f"Skill of the mean on the test windows, scaled units: {skill} (1 - MSE / MSE of the naive forecast; at or "
        "below 0 it was no better).",
    ]


def _intervals(intervals: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return how the intervals were computed, and their coverage on the test windows."""
    method = "of the mixture itself"
    if intervals["method"] == "conformal":
        method = f"conformal, from the errors on {intervals['calibration_windows']} validation windows"
    test = (results.get("test") or {}).get("intervals") or {}
    coverages = [
        f"{100 * part['nominal']:g} % held {100 * part['coverage']['overall']:.0f} %"
        for part in test.get("price") or test.get("scaled") or ()
        if part["nominal"] in intervals["levels"] and part["coverage"]["overall"] is not None
    ]
    if coverages:
        method += f"; on the test windows {', '.join(coverages)}"
    missing = [f"{100 * level:g} %" for level in intervals.get("missing", ())]
    return f"{method}; none of {', '.join(missing)}: too few validation windows" if missing else method


def _skill(results: Mapping[str, Any], checkpoint: str) -> str:
    """Return a sentence on the skill of the run on its test windows, with the weights of `checkpoint`."""
    test = results.get("test") or {}
    for units in ("price", "scaled"):
        skill = (test.get(units) or {}).get("skill")
        if skill:
            figures = ", ".join(
                f"{name} {value:+.4f}" if value is not None else f"{name} unknown" for name, value in skill.items()
            )
            return (
                f"Skill of {checkpoint} on {test.get('windows', 'its')} test windows, {units} units: {figures} "
                "(1 - MSE / MSE of the naive forecast; at or below 0 it was no better)."
            )
    return "This run has not been tested against naive forecasts yet."
