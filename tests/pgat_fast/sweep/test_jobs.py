"""Jobs of a sweep: combinations, unique names, files, and early errors for invalid configurations."""

import csv
import os
import shlex
from pathlib import Path

import pytest

from pgat_fast import load_config
from pgat_fast.config import Config
from pgat_fast.errors import ConfigError
from pgat_fast.sweep.jobs import COMMANDS, CONFIG, JOBS, Job, is_sweep, jobs_of, parse_grid, read_jobs, write_jobs


@pytest.fixture
def config() -> Config:
    return load_config(None, ["training.seed=7"])


def test_jobs_combine_all_settings_and_seeds(config: Config) -> None:
    jobs = jobs_of(config, parse_grid(["training.learning_rate=1e-3,1e-4", "model.dropout=0,0.1"]), 3)
    assert len(jobs) == len({job.name for job in jobs}) == 12
    assert [job.seed for job in jobs[:4]] == [7, 8, 9, 7]
    assert jobs[4].name == "training.learning_rate-1e-3-model.dropout-0.1-seed-8"
    job_config = load_config(config, jobs[4].overrides(Path("there")))
    assert (job_config.training.learning_rate, job_config.model.dropout, job_config.training.seed) == (1e-3, 0.1, 8)
    assert job_config.run.output == "there/runs"


def test_jobs_without_grid_differ_only_in_seed(config: Config) -> None:
    assert [job.name for job in jobs_of(config, {}, 2)] == ["seed-7", "seed-8"]


def test_list_in_brackets_is_one_value() -> None:
    assert parse_grid(["data.targets=[log_Open,log_Close],[log_Close]"]) == {
        "data.targets": ["[log_Open,log_Close]", "[log_Close]"]
    }


def test_unsafe_values_give_unique_valid_names() -> None:
    odd = [Job((("data.targets", value),), 1).name for value in ("[a,b]", "[a;b]", "x" * 300)]
    assert len(set(odd)) == 3
    assert all(load_config(None, [f"run.name={name}"]) and len(name) < 120 for name in odd)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["training.epochs"], "expected KEY=VALUE"),
        (["training.epochs="], "expected KEY=VALUE"),
        (["training.epochs=1,,2"], "expected KEY=VALUE"),
        (["training.epochs=1", "training.epochs=2"], "training.epochs is given twice"),
        (["training.epochs=1,1"], "a value is given twice"),
        (["epochs=1,2"], "name the setting in full, with its section, as in training.epochs"),
        (["training.seed=1,2"], "training.seed cannot be part of a grid: use --seeds"),
        (["run.name=a,b"], "jobs are named automatically"),
    ],
)
def test_invalid_grid_raises(texts: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_grid(texts)


def test_invalid_configuration_raises_before_running(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"--grid training.epochs=never: .*training.epochs"):
        jobs_of(config, parse_grid(["training.epochs=1,never"]), 1)
    with pytest.raises(ConfigError, match="--seeds is 0"):
        jobs_of(config, {}, 0)


def test_write_jobs_writes_table_and_commands_for_queue(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "a sweep"
    jobs = jobs_of(config, parse_grid(["model.dropout=0,0.1"]), 2)
    assert not is_sweep(folder)
    write_jobs(folder, config, jobs)
    assert is_sweep(folder)
    assert read_jobs(folder) == jobs
    assert load_config(folder / CONFIG) == config
    commands = [shlex.split(line) for line in (folder / COMMANDS).read_text().splitlines()]
    assert [command[:6] for command in commands] == [["cd", os.getcwd(), "&&", "pgat-fast", "train", "--config"]] * 4
    assert f'run.output="{folder / "runs"}"' in commands[0]
    with (folder / JOBS).open() as file:
        assert next(csv.reader(file)) == ["job", "model.dropout", "training.seed"]


def test_write_jobs_allows_more_jobs_but_no_other_settings(config: Config, tmp_path: Path) -> None:
    jobs, more_jobs = (
        jobs_of(config, parse_grid([f"model.dropout={values}"]), n) for values, n in (("0.1", 2), ("0,0.1", 3))
    )
    assert write_jobs(tmp_path, config, jobs) == jobs
    all_jobs = write_jobs(tmp_path, config, more_jobs)
    assert all_jobs[:2] == jobs, "lines stay where a queue has found them"
    assert set(all_jobs) == set(more_jobs)
    assert write_jobs(tmp_path, config, jobs) == all_jobs, "nothing is taken away"
    with pytest.raises(ConfigError, match="holds a sweep over other settings"):
        write_jobs(tmp_path, config, jobs_of(config, {}, 1))
    other_config = load_config(config, ["training.epochs=77"])
    with pytest.raises(ConfigError, match="holds a sweep of another configuration"):
        write_jobs(tmp_path, other_config, jobs_of(other_config, {}, 1))
    with pytest.raises(ConfigError, match="not a sweep"):
        read_jobs(tmp_path / "none")


def test_sweep_that_began_with_a_precision_continues_with_it(config: Config, tmp_path: Path) -> None:
    """The default was `highest` in earlier versions."""
    jobs = jobs_of(config, {}, 2)
    write_jobs(tmp_path, load_config(config, ["run.precision=highest"]), jobs)
    assert config.run.precision == "auto"
    assert write_jobs(tmp_path, config, jobs) == jobs
    assert load_config(tmp_path / CONFIG).run.precision == "highest"
    with pytest.raises(ConfigError, match="another configuration"):
        write_jobs(tmp_path, load_config(config, ["run.precision=bf16"]), jobs)
