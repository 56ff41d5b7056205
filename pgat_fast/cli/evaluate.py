"""`pgat-fast evaluate`: test a run again, or backtest it from several points in time."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pgat_fast.cli.arguments import add_overrides_argument, start_logging

if TYPE_CHECKING:
    import pandas as pd


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `evaluate` to `subparsers`."""
    parser = subparsers.add_parser(
        "evaluate", help="test the weights of a run beside naive baselines, or backtest its configuration"
    )
    parser.add_argument("folder", metavar="RUN", help="folder of a run, finished or not")
    parser.add_argument(
        "--checkpoint", default="best", metavar="best|latest|NAME", help="which weights (default: %(default)s)"
    )
    parser.add_argument(
        "--origins",
        type=int,
        metavar="N",
        help="rolling-origin backtest: train anew from N points in time, one test split apart, into RUN/backtest",
    )
    parser.add_argument("--out", metavar="DIR", help="where to write (default: RUN/evaluation-CHECKPOINT)")
    add_overrides_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no log lines but warnings")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate the run, print the results, and return 0."""
    from pgat_fast.training.stop import StopSignals

    with StopSignals() as stop:
        start_logging(quiet=args.quiet)
        if args.origins is not None:
            from pgat_fast.config import load_config
            from pgat_fast.training.backtest import backtest, summarize

            folder = Path(args.folder)
            config = load_config(folder / "config.yaml", args.overrides)
            out = Path(args.out) if args.out else folder / "backtest"
            table = backtest(config, out, args.origins, stop=stop, progress=not args.quiet)
            print(_backtest_text(table, summarize(table)))
            print(f"\nwritten to {out}: backtest.json, and a folder for each origin")
            return 0

        from pgat_fast.evaluation.assess import write_assessment
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
    formatted = table.copy()
    for column in formatted.columns:
        if column.startswith("mse_"):
            formatted[column] = formatted[column].map("{:.5f}".format, na_action="ignore")
        elif column.startswith("skill_"):
            formatted[column] = formatted[column].map("{:+.4f}".format, na_action="ignore")
    lines = [formatted.to_string(), "", "skill over all origins (1 - MSE / MSE of the baseline, scaled units):"]
    for name, values in summary.items():
        pooled, mean, error = values["pooled"], values["mean"], values["standard_error"]
        if pooled is None or mean is None:
            lines.append(f"  {name:<12} no origin has finite errors")
            continue
        spread = "" if error is None else f" +- {error:.4f} (standard error)"
        lines.append(
            f"  {name:<12} pooled {pooled:+.4f}, mean {mean:+.4f}{spread}, "
            f"above 0 in {values['positive']} of {values['origins']}"
            + (f", {values['left_out']} left out" if values["left_out"] else "")
        )
    return "\n".join(lines)
