"""`pgat-fast sweep`: train a grid of settings with several seeds, and tabulate the results."""

import argparse

from pgat_fast.cli.arguments import add_config_arguments, config_from, start_logging

_EPILOG = """\
Every job is a run of its own in DIR/runs. Called again, the sweep goes on where it was stopped; more seeds or values
may be asked for. DIR/commands.txt has a job a line, for a queue:
    sed -n "${SLURM_ARRAY_TASK_ID}p" DIR/commands.txt | sh
then `--jobs 0` gathers the results. `pgat-fast predict DIR --from FILE.csv --out FORECAST.csv` is the mean forecast of
the seeds of the best point.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `sweep` to `subparsers`."""
    parser = subparsers.add_parser(
        "sweep", help="train a grid of settings with several seeds, one table of them", epilog=_EPILOG
    )
    add_config_arguments(parser)
    parser.add_argument(
        "--grid", metavar="KEY=V,V,...", nargs="+", action="extend", default=[], help="values to try of a setting"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="of each, from training.seed on (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="DIR", help="default: run.output/run.name-sweep")
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="at a time, on each GPU or on the CPU (default: 1 on each GPU, on a CPU one for two cores); 0: none, only "
        "write what is to be done, and gather what is finished",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no log lines but warnings")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the unfinished jobs, print and write the table; return 1 if a job failed, else 0."""
    from pgat_fast.training.stop import PATIENCE, StopSignals

    with StopSignals() as stop:
        start_logging(quiet=args.quiet)
        from pathlib import Path

        from pgat_fast.sweep.jobs import Job, jobs_of, parse_grid, write_jobs
        from pgat_fast.sweep.pool import STOP_SECONDS, places, run_jobs
        from pgat_fast.sweep.table import as_text, finished, write_results
        from pgat_fast.training.run_folder import is_locked, locked

        config = config_from(args)
        jobs = jobs_of(config, parse_grid(args.grid), args.seeds)
        folder = Path(args.out) if args.out else Path(config.run.output) / f"{config.run.name}-sweep"
        job_places = [] if args.jobs == 0 else places(config.run.device, args.jobs)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            jobs = write_jobs(folder, config, jobs)
            failures: dict[str, str] = {}
            locked_jobs: list[Job] = []
            if job_places:
                stop.patience = STOP_SECONDS + PATIENCE  # wait until the jobs have saved a checkpoint
                unfinished = [job for job in jobs if finished(job.folder(folder)) is None]
                locked_jobs = [job for job in unfinished if is_locked(job.folder(folder))]
                own_jobs = [job for job in unfinished if job not in locked_jobs]
                failures = run_jobs(folder, own_jobs, job_places, stop=stop, progress=not args.quiet)
            records = write_results(folder, jobs)
    print(as_text(records))
    finished_count = sum(record["seeds"] for record in records)
    print(
        "\nbest first, by the validation loss; mean +- standard deviation over seeds; errors in scaled units. Against a"
        "\nnaive forecast: 1 - MSE / its MSE, above 0 is better. The ensemble is the mean forecast of the seeds."
    )
    print(f"\nwritten to {folder}: results.csv, summary.json; {finished_count} of {len(jobs)} jobs are finished")
    if locked_jobs:
        print(f"left to the processes that are at work on them: {', '.join(job.name for job in locked_jobs)}")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    return int(bool(failures))
