"""Consistency of README.md and docs/: Python blocks run, commands exist, figures equal the committed results."""

import json
import re
import shlex
from pathlib import Path

import pytest

from bench.report import PAGE, render_page, render_readme
from bench.result_files import load, newest
from pgat_fast.cli import build_parser
from tests.pgat_fast.training.runs import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}


def blocks(language: str) -> list[str]:
    return [
        block for text in PAGES.values() for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    ]


@pytest.fixture(scope="module")
def workplace(tiny_settings: list[str], data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the inputs of the pages' Python blocks: configurations, a data file and a tiny run."""
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
def test_python_blocks_run(code: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(code, "README.md", "exec"), {})


def test_commands_and_options_exist() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("pgat-fast")]
    commands = [shlex.split(line, comments=True) for line in lines]
    assert len(commands) > 15
    for command in commands:
        build_parser().parse_args(command[1:])


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {target for text in PAGES.values() for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)}
    assert targets >= {"train", "test", "test-all", "gpu"}
    for target in targets:
        assert re.search(rf"^(?:test )?{target}\b.*:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    for name in re.findall(r"`((?:configs|tests|examples|bench|kernels|pgat_fast)/[\w./]+)`", PAGES[page]):
        assert (ROOT / name).exists(), name


def test_generated_text_equals_committed_results() -> None:
    assert render_readme(README) == README
    assert render_page() == PAGE.read_text()


def test_quickstart_output_equals_committed_output() -> None:
    output = newest("make_train.txt")
    assert output is not None
    printed_lines = output.read_text().splitlines()
    match = re.search(r"```\n(quickstart: .*?)```", README, re.DOTALL)
    assert match is not None
    assert [line for line in match[1].splitlines() if line not in printed_lines] == []


def test_effect_of_known_covariates_equals_committed_results() -> None:
    results = load("decoder_future")["results"]
    pairs = zip(results["known"]["origins"], results["zeros"]["origins"], strict=True)
    ratios = [known["mse_model"] / zeros["mse_model"] for known, zeros in pairs]
    assert len(ratios) == 4
    assert f"{min(ratios):.2f} to {max(ratios):.2f} times" in " ".join(PAGES["forecasting.md"].split())


def test_every_committed_step_time_is_in_a_table() -> None:
    for path in (ROOT / "bench" / "results").glob("*/*/step_*.json"):
        for result in json.loads(path.read_text())["results"]:
            assert f"| {result['step_seconds']['median']:.2f} |" in PAGES["performance.md"], path.name
