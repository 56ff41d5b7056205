"""Jobs of a sweep: one run for every combination of a grid of settings, with every seed."""

import hashlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from pgat_fast.config import Config, dump_config, load_config, with_precision_of
from pgat_fast.errors import ConfigError
from pgat_fast.training.run_folder import has_checkpoints, run_folders
from pgat_fast.utils.io import write_atomically

RUNS: Final = "runs"
"""Folder of the runs, within that of the sweep."""
JOBS: Final = "jobs.csv"
COMMANDS: Final = "commands.txt"
CONFIG: Final = "config.yaml"
_RESERVED: Final = {
    "run.name": "jobs are named automatically",
    "run.output": "use --out",
    "training.seed": "use --seeds",
}
"""Settings that a grid cannot contain -> advice for the error message."""
_LONGEST: Final = 100
"""Maximum number of characters of a job's name, without the hash that makes it unique."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep. `settings` are the (key, value) pairs of the grid, as given."""

    settings: tuple[tuple[str, str], ...]
    seed: int

    @property
    def name(self) -> str:
        """Name of the run: readable and unique."""
        words = "-".join([*(f"{key}-{value}" for key, value in self.settings), f"seed-{self.seed}"])
        plain = re.sub(r"[^\w.-]", "_", words)
        if plain == words and len(plain) <= _LONGEST:
            return plain
        return f"{plain[:_LONGEST]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"

    def overrides(self, folder: Path) -> list[str]:
        """Return the settings of this job that replace those of the configuration of the sweep in `folder`."""
        settings = [f"{key}={value}" for key, value in self.settings]
        output = json.dumps(str(folder / RUNS))
        return [*settings, f"training.seed={self.seed}", f"run.name={self.name}", f"run.output={output}"]

    def arguments(self, folder: Path) -> list[str]:
        """Return the arguments for `pgat-fast`. A second call resumes the run, or reports that it is complete."""
        return ["train", "--config", str(folder / CONFIG), "--set", *self.overrides(folder), "--resume", "--quiet"]

    def folder(self, sweep: Path) -> Path:
        """Return the folder of the newest run with a checkpoint.

        A run that was stopped before its first checkpoint cannot be resumed, and a new one is started.
        """
        runs = [folder for folder in run_folders(sweep / RUNS, self.name) if has_checkpoints(folder)]
        return runs[0] if runs else sweep / RUNS / self.name


def parse_grid(texts: Sequence[str]) -> dict[str, list[str]]:
    """Parse `KEY=VALUE,VALUE,...`; a comma within brackets belongs to a value.

    Raises ConfigError, with the cause, for a text without values, a key that is given twice, and a key that every job
    sets itself.
    """
    grid: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        split = [value.strip() for value in re.split(r",(?![^\[]*\])", values)]
        if not key or not equals or not all(split):
            raise ConfigError(f"--grid {text}: expected KEY=VALUE,VALUE,... such as training.learning_rate=1e-3,1e-4")
        if "." not in key:
            raise ConfigError(f"--grid {text}: name the setting in full, with its section, as in training.{key}")
        if key in grid:
            raise ConfigError(f"--grid {text}: {key} is given twice: give all of its values together")
        if key in _RESERVED:
            raise ConfigError(f"--grid {text}: {key} cannot be part of a grid: {_RESERVED[key]}")
        if len(set(split)) < len(split):
            raise ConfigError(f"--grid {text}: a value is given twice")
        grid[key] = split
    return grid


def jobs_of(config: Config, grid: dict[str, list[str]], seeds: int) -> list[Job]:
    """Return a job for every combination and each of `seeds` seeds, counted from that of `config`.

    Raises ConfigError if a combination is not a valid configuration, before anything runs.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}: must be at least 1")
    first, jobs = config.training.seed, []
    for values in itertools.product(*grid.values()):
        settings = tuple(zip(grid, values, strict=True))
        point = [f"{key}={value}" for key, value in settings]
        try:
            load_config(config, point)
        except ConfigError as error:
            raise ConfigError(f"--grid {' '.join(point)}: {error}") from error
        jobs += [Job(settings, first + number) for number in range(seeds)]
    if len({job.name for job in jobs}) < len(jobs):
        raise ConfigError("--grid: two combinations have the same job name: write their values differently")
    return jobs


def write_jobs(folder: Path, config: Config, jobs: Sequence[Job]) -> list[Job]:
    """Write the configuration, `jobs.csv`, and `commands.txt` with one job per line into `folder`; return all jobs.

    Existing jobs keep their lines and new ones follow, because a queue may be using the line numbers.

    Raises ConfigError if the folder holds a sweep of another configuration, or over other settings.
    """
    config_path = folder / CONFIG
    if config_path.exists():
        stored = load_config(config_path)
        config = with_precision_of(stored, config)
        if stored != config:
            raise ConfigError(f"{folder}: holds a sweep of another configuration: choose another --out")
    existing = read_jobs(folder) if is_sweep(folder) else []
    if existing and [key for key, _ in existing[0].settings] != [key for key, _ in jobs[0].settings]:
        raise ConfigError(f"{folder}: holds a sweep over other settings: choose another --out")
    jobs = [*existing, *(job for job in jobs if job not in existing)]
    table = pd.DataFrame([{"job": job.name, **dict(job.settings), "training.seed": job.seed} for job in jobs])
    working_directory = shlex.quote(os.getcwd())  # paths in the configuration are relative to it
    commands = [f"cd {working_directory} && {shlex.join(['pgat-fast', *job.arguments(folder)])}" for job in jobs]
    write_atomically(config_path, dump_config(config).encode())
    write_atomically(folder / JOBS, table.to_csv(index=False, lineterminator="\n").encode())
    write_atomically(folder / COMMANDS, ("\n".join(commands) + "\n").encode(errors="surrogateescape"))
    return jobs


def read_jobs(folder: Path) -> list[Job]:
    """Return the jobs that `write_jobs` wrote. Raises ConfigError if `folder` is not a sweep."""
    try:
        table = pd.read_csv(folder / JOBS, dtype=str, keep_default_na=False)
        keys = table.columns[1:-1]
        return [Job(tuple(zip(keys, row[1:-1], strict=True)), int(row[-1])) for row in table.itertuples(index=False)]
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{folder}: not a sweep: {JOBS} cannot be read ({error})") from error


def is_sweep(folder: Path) -> bool:
    """Return whether `folder` holds a sweep that `write_jobs` wrote."""
    return (folder / JOBS).is_file()
