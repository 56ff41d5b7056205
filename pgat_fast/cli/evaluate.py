"""`pgat-fast evaluate`: test a run again, or backtest it from several points in time."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pgat_fast.cli.arguments import (
    Subparsers,
    add_command,
    add_overrides_argument,
    add_quiet_argument,
    add_run_arguments,
    start_logging,
)

if TYPE_CHECKING:
    import pandas as pd


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `evaluate` to `subparsers`."""
    parser = add_command(subparsers, "evaluate", run)
    add_run_arguments(parser)
    parser.add_argument("--origins", type=int, metavar="N", help="run a backtest with N test splits")
    text = "output folder (default: RUN/evaluation-CHECKPOINT, or RUN/backtest)"
    parser.add_argument("--out", metavar="DIR", help=text)
    add_overrides_argument(parser)
    add_quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Test a run against naive baselines, or backtest it.

    Writes evaluation.json, forecasts.csv, adjacency.csv and intervals.json. With --origins,
    runs a rolling-origin backtest instead: N models are trained, each on the data before one
    of N consecutive test splits. A second call continues an interrupted backtest.
    """
    from pgat_fast.training.signals import StopSignals

    with StopSignals() as stop:
        start_logging(quiet=args.quiet)
        if args.origins is not None:
            from pgat_fast.config import load_config
            from pgat_fast.training.backtest import backtest, summarize
            from pgat_fast.training.other_machine import check_data_file, with_available_settings

            folder = Path(args.folder)
            config = load_config(folder / "config.yaml", args.overrides)
            config = with_available_settings(config, args.overrides)
            check_data_file(config, folder)
            out = Path(args.out) if args.out else folder / "backtest"
            table = backtest(config, out, args.origins, stop=stop, progress=not args.quiet)
            print(_backtest_text(table, summarize(table)))
            print(f"\nwritten to {out}: backtest.json, and a folder for each origin")
            return 0

        from pgat_fast.evaluation.assessment import write_assessment
        from pgat_fast.forecasting.evaluate import evaluate
        from pgat_fast.forecasting.load_run import load_run
        from pgat_fast.training.results import test_summary
        from pgat_fast.utils.io import write_json

        loaded = load_run(args.folder, args.checkpoint, overrides=args.overrides)
        assessment = evaluate(loaded, on_batch=stop.check, progress=not args.quiet)
    out = Path(args.out) if args.out else loaded.folder / f"evaluation-{loaded.checkpoint.name}"
    write_assessment(out, assessment)
    evaluation = {"checkpoint": loaded.checkpoint.name, "test": assessment.test, "adversarial": assessment.adversarial}
    write_json(out / "evaluation.json", evaluation)
    print(f"{loaded.folder}, checkpoint {loaded.checkpoint.name}")
    print(test_summary(assessment.test))
    print(f"\nwritten to {out}: evaluation.json, forecasts.csv, adjacency.csv, intervals.json")
    return 0


def _backtest_text(table: "pd.DataFrame", summary: dict[str, dict[str, float | None]]) -> str:
    """Return the rows of a backtest and the summary of the skills as text."""
    import pandas as pd

    skills = pd.DataFrame.from_dict(summary, orient="index").astype(float)
    counts = ["positive", "origins", "left_out"]
    skills = skills.astype(dict.fromkeys(counts, int)).rename(columns=lambda name: name.replace("_", " "))
    return "\n".join(
        [
            table.to_string(float_format="{:.5f}".format),
            "\nskill over all origins (1 - MSE / MSE of the baseline, scaled units):",
            skills.to_string(float_format="{:+.4f}".format, na_rep="-"),
        ]
    )
