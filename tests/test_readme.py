"""The README is true: its Python runs, its commands exist, its figures are those of the committed results."""

import json
import re
import shlex
from pathlib import Path

import pytest

from bench.report import BLOCKS, rewritten
from pgat_fast.cli import build_parser
from tests.pgat_fast.training.runs import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tiny_settings: list[str], data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's Python finds: the configurations, a data file and, here a tiny one, a run."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "data").mkdir()
    for suffix in ("", ".note.json"):
        source = data_file.with_name(data_file.name + suffix)
        (folder / "data" / f"prepared_financial_data.csv{suffix}").write_bytes(source.read_bytes())
    run(
        [*tiny_settings, f"data.path={folder / 'data' / 'prepared_financial_data.csv'}"], folder / "runs" / "quickstart"
    )
    return folder


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(code: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(code, "README.md", "exec"), {})


def test_the_commands_exist_with_these_options() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("pgat-fast")]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert len(commands) == 15
    for command in commands:
        build_parser().parse_args(command[1:])


def test_the_files_it_names_are_there() -> None:
    for name in re.findall(r"`((?:configs|tests|examples|bench)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


def test_what_is_written_by_the_report_is_what_it_would_write() -> None:
    assert rewritten(README) == README
    assert set(re.findall(r"<!-- written: (\w+) -->", README)) == set(BLOCKS)


def test_every_committed_step_is_in_a_table() -> None:
    for path in (ROOT / "bench" / "results").glob("fast_step_*.json"):
        for result in json.loads(path.read_text())["results"]:
            assert f"| {result['step_seconds']['median']:.2f} |" in README, path.name
