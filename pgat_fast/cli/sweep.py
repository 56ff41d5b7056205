"""`pgat-fast sweep`: train a grid of settings with several seeds and compare the results."""

import argparse

from pgat_fast.cli.arguments import (
    Subparsers,
    add_command,
    add_config_arguments,
    add_quiet_argument,
    config_from,
    start_logging,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command `sweep` to `subparsers`."""
    parser = add_command(subparsers, "sweep", run)
    add_config_arguments(parser)
    text = "setting and the values to try"
    parser.add_argument("--grid", metavar="KEY=V,V,...", nargs="+", action="extend", default=[], help=text)
    text = "number of seeds, counted from training.seed (default: %(default)s)"
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help=text)
    parser.add_argument("--out", metavar="DIR", help="output folder (default: run.output/run.name-sweep)")
    text = (
        "number of jobs at a time, for each GPU or on the CPU; 0 runs no jobs, writes the list of jobs and collects "
        "finished ones (default: 1 for each GPU, or 1 for every 2 CPU cores)"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help=text)
    add_quiet_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Train a grid of settings with several seeds and compare the results.

    Every combination of settings is trained with every seed, as a run in DIR/runs. A second
    call continues an interrupted sweep; values and seeds can be added. Exit code 1 if a job
    failed.

    DIR/commands.txt has one line for each job. To use a job queue, write it with --jobs 0,
    run the lines:
        sed -n "${SLURM_ARRAY_TASK_ID}p" DIR/commands.txt | sh
    and collect the results with --jobs 0 again.

    `pgat-fast predict DIR --from FILE.csv --out FORECAST.csv` writes the mean forecast of the
    seeds of the best combination.
    """
    from pgat_fast.training.signals import PATIENCE, StopSignals

    with StopSignals() as stop:
        start_logging(quiet=args.quiet)
        from pathlib import Path

        from pgat_fast.sweep.jobs import Job, jobs_of, parse_grid, write_jobs
        from pgat_fast.sweep.pool import STOP_SECONDS, places, run_jobs
        from pgat_fast.sweep.table import as_text, write_results
        from pgat_fast.training.run_folder import finished_results, is_locked, locked

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
                unfinished = [job for job in jobs if finished_results(job.folder(folder)) is None]
                locked_jobs = [job for job in unfinished if is_locked(job.folder(folder))]
                free_jobs = [job for job in unfinished if job not in locked_jobs]
                failures = run_jobs(folder, free_jobs, job_places, stop=stop, progress=not args.quiet)
            records = write_results(folder, jobs)
    print(as_text(records))
    finished_count = sum(record["seeds"] for record in records)
    print(
        "\nSorted by validation loss. Values are means +- standard deviations over the seeds, errors in scaled units."
        "\nSkill is 1 - MSE / MSE of the baseline, positive if the model is better. The ensemble is the mean forecast."
    )
    print(f"\nwritten to {folder}: results.csv, summary.json; {finished_count} of {len(jobs)} jobs are finished")
    if locked_jobs:
        print(f"skipped, because another process is running them: {', '.join(job.name for job in locked_jobs)}")
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}")
    return int(bool(failures))
