"""The HTML page of a run: valid, safe and complete."""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pgat_fast.errors import ConfigError, DataError
from pgat_fast.report.formatting import (
    DASH,
    format_duration,
    format_number,
    format_signed,
    format_timestamp,
    make_aligned_formatter,
)
from pgat_fast.report.page import write_report
from pgat_fast.report.test_section import describe_skills
from pgat_fast.training.run_folder import write_status
from tests.pgat_fast.report.example_run import SCENARIOS, write_finished_run, write_unfinished_run

VOID = {"meta", "br", "hr", "img", "link", "input"}
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
HOSTILE = "<script>alert('1')</script>&\"' --> <img src=http://evil/x>"


class Page(HTMLParser):
    """Parse a page; fail on unbalanced tags; collect text, tags and references."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.identities: list[str] = []
        self.references: list[str] = []
        self.shown: list[str] = []
        self.styles: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        assert not [name for name in names if name.startswith("on")], f"<{tag}> runs a script"
        self.identities += [value or "" for name, value in attrs if name == "id"]
        self.references += [value or "" for name, value in attrs if name in LOADING]
        self.styles += [value or "" for name, value in attrs if name == "style"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        (self.styles if "style" in self.open else self.shown).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())


def page_of(run: Path) -> Page:
    return Page(write_report(run))


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip drawing, which takes most of the time of a page."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Page]:
    folder = tmp_path_factory.mktemp("runs") / "nightly"
    results = write_finished_run(folder)
    return results, page_of(folder)


def test_tags_are_balanced_and_links_have_targets(finished: tuple[dict[str, Any], Page]) -> None:
    _, page = finished
    assert page.source.startswith("<!DOCTYPE html>\n<html lang=")
    assert len(page.identities) == len(set(page.identities))
    local = [reference for reference in page.references if reference.startswith("#")]
    assert {reference[1:] for reference in local} <= set(page.identities)
    sections = re.findall(r'<section id="(\w+)">', page.source)
    assert re.findall(r'<a href="#(\w+)">', page.source) == sections
    labelled = re.findall(r'aria-labelledby="([\w-]+)"', page.source)
    assert len(labelled) == 8
    assert set(labelled) <= set(page.identities)
    assert page.tags.count("svg") == 8
    assert "\N{REPLACEMENT CHARACTER}" not in page.source


def test_page_loads_nothing_and_has_no_scripts(finished: tuple[dict[str, Any], Page]) -> None:
    _, page = finished
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video"} & set(page.tags)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    styles = " ".join(page.styles)
    assert "@import" not in styles
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", styles))
    assert "http:" not in page.source
    assert "https:" not in page.source


def test_page_has_dark_and_narrow_styles(finished: tuple[dict[str, Any], Page]) -> None:
    _, page = finished
    styles = " ".join(page.styles)
    assert "prefers-color-scheme: dark" in styles
    assert "max-width: 40rem" in styles
    assert '<meta name="viewport" content="width=device-width' in page.source
    # Both colour schemes define every colour of the figures.
    for variable in set(re.findall(r"var\((--[\w-]+)\)", page.source)):
        assert styles.count(f"{variable}:") == 2, f"{variable} is not defined for light and dark"


def test_headline_agrees_with_skills(finished: tuple[dict[str, Any], Page]) -> None:
    results, page = finished
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for units, title in (("scaled", "scaled units"), ("price", "prices")):
        sentence = text.split(f"Squared error, {title}: ", 1)[1].split(").", 1)[0]
        better, _, worse = sentence.partition("no better than")
        for name, skill in results["test"][units]["skill"].items():
            assert (name.replace("_", " ") in better) == (skill > 0)
            assert (name.replace("_", " ") in worse) == (skill <= 0)


@pytest.mark.parametrize(
    ("skills", "words"),
    [
        ({"last_value": 0.3, "drift": -0.05}, "better than last value (30 % lower), no better than drift (5 % higher)"),
        ({"last_value": 0.5, "drift": 0.25}, "better than last value (50 % lower) and drift (25 % lower)"),
        ({"a": -0.5, "b": 0.0, "c": -1.0}, "no better than a (50 % higher), b (0 % higher) or c (100 % higher)"),
        ({"drift": 0.002}, "better than drift (only 0.2 % lower)"),
        ({"drift": None}, "no better than drift (error not finite)"),
        ({}, "not compared with any baseline"),
    ],
)  # fmt: skip
def test_skills_are_described_in_words(skills: dict[str, float | None], words: str) -> None:
    assert describe_skills(skills).replace("\N{NO-BREAK SPACE}", " ") == words


def test_checklist_is_shown(finished: tuple[dict[str, Any], Page]) -> None:
    results, page = finished
    for line in results["checklist"]:
        assert f"{line['check']} {'yes' if line['passed'] else 'no'} {line['figure']}" in page.text
    passed = sum(line["passed"] for line in results["checklist"])
    assert f"Checklist: {passed} of {len(results['checklist'])}" in page.text


def test_all_errors_and_skills_are_shown(finished: tuple[dict[str, Any], Page]) -> None:
    results, page = finished
    numbers = {float(f.replace(",", "")) for f in re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?", page.text)}
    expected = []
    for units in ("scaled", "price"):
        comparison = results["test"][units]
        for name in ("model", "last_value", "zero_return", "drift"):
            expected += [comparison[name]["overall"][key] for key in ("mae", "mse", "rmse")]
            expected += [comparison[name][target]["rmse"] for target in results["targets"]]
            expected += results["test"]["by_horizon"][units][name]
        expected += [abs(value) for value in comparison["skill"].values()]
    for epoch in results["epochs"]:
        expected += [epoch["train_loss"], epoch["validation_loss"], epoch["learning_rate"]]
    for scenario in results["adversarial"]["scenarios"].values():
        expected += [scenario["metrics"]["overall"][key] for key in ("mae", "rmse")] if scenario["metrics"] else []
    for value in expected:
        # Four digits are shown, a learning rate in scientific form.
        is_shown = f"{value:.3e}" in page.text or min(abs(number - value) for number in numbers) <= 5e-4 * value + 5e-5
        assert is_shown, f"{value} is not on the page"


def test_all_other_sections_are_shown(
    finished: tuple[dict[str, Any], Page],
) -> None:
    results, page = finished
    for level in results["test"]["intervals"]["scaled"]:
        assert f"{level['nominal']:.0%} {100 * level['coverage']['overall']:.1f} %" in page.text
    for name, description in SCENARIOS.items():
        assert name.replace("_", " ") in page.text
        assert description in page.text
    assert "the forecast is not finite" in page.text
    for name in results["checkpoints"]["kept"]:
        assert name in page.text
    for text in (results["data"]["sha256"], "base price", "970.4", "7,109", "2026-02-27"):
        assert text in page.text
    assert "learning_rate: 0.001" in page.text
    for name, version in results["versions"].items():
        assert f"{name} {version}" in page.text
    for text in (
        "1,234,567",
        "peak process 2.35 GiB",
        "windows per second 2.500",
        "1 h 24 min",
        "all 12 epochs are done",
    ):
        assert text in page.text


def test_events_are_shown(finished: tuple[dict[str, Any], Page]) -> None:
    _, page = finished
    assert "resume 3 90 epoch-0002-step-00000090" in page.text


@pytest.mark.parametrize("place", ["name", "config", "reason", "target"])
def test_hostile_text_is_escaped(tmp_path: Path, place: str, request: pytest.FixtureRequest) -> None:
    if place in ("config", "reason"):  # not shown in figures
        request.getfixturevalue("without_figures")
    folder = tmp_path / "run"
    targets = (HOSTILE, "log_Close") if place == "target" else ("log_Open", "log_Close")
    name = HOSTILE if place == "name" else "run"
    write_finished_run(folder, name=name, targets=targets, epochs=1, windows=2, days=2)
    if place == "config":
        (folder / "config.yaml").write_text(f"# </pre></style>{HOSTILE}\n", encoding="utf-8")
    if place == "reason":
        write_status(folder, HOSTILE, reason=HOSTILE, stage=HOSTILE, epoch=HOSTILE, step=HOSTILE)
    page = page_of(folder)
    assert HOSTILE in " ".join(page.shown)
    assert not {"script", "img"} & set(page.tags)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)


def set_scripts_as_text(tree: Any, path: str, count: Iterator[int]) -> Iterator[tuple[str, str]]:
    """Replace every string of a JSON tree with a numbered script; yield the path and the script of each."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        if isinstance(value, str):
            tree[key] = f"<script>alert({next(count)})</script>"
            yield f"{path}.{key}", tree[key]
        elif isinstance(value, dict | list):
            yield from set_scripts_as_text(value, f"{path}.{key}", count)


NOT_SHOWN = re.compile(
    r"results\.(config|started|finished|kernels|checkpoints\.(latest|best)|adversarial\.scenarios\.\w+\.status)"
    r"|status\.time|event\.level"
)
"""Fields that the page does not show as they are. It cuts times to 19 characters."""


@pytest.mark.usefixtures("without_figures")
def test_script_in_any_free_text_field_is_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<script>folder"
    results = write_finished_run(folder, epochs=1, windows=2, days=1)
    results["checkpoints"]["faults"] = ["damaged"]
    results["status"] = "ended early"
    count = itertools.count()
    scripts = dict(set_scripts_as_text(results, "results", count))
    status = {"state": "failed", "reason": "", "stage": "", "epoch": "", "step": "", "exit_code": "", "time": ""}
    scripts |= set_scripts_as_text(status, "status", count)
    event = {"level": "ERROR", "stage": "", "epoch": "", "step": "", "error": "", "reason": "", "message": ""}
    scripts |= set_scripts_as_text(event, "event", count)
    event["level"] = "ERROR"
    # Keys are shown as well.
    results["test"]["scaled"]["skill"]["<script>baseline</script>"] = 0.5
    results["adversarial"]["scenarios"]["<script>scenario</script>"] = {"status": "ok"}
    results["versions"]["<script>package</script>"] = "1"
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    (folder / "config.yaml").write_text("<script>config</script>")

    page = page_of(folder)

    assert "script" not in page.tags
    text = "".join(page.shown)
    missing = [path for path, script in scripts.items() if script not in text and not NOT_SHOWN.match(path)]
    assert missing == []
    for word in ("baseline</script>", "scenario</script>", "package</script>", "config</script>", "folder"):
        assert f"<script>{word}" in text


def test_surrogates_and_control_characters_are_replaced(tmp_path: Path) -> None:
    write_finished_run(
        tmp_path / "run", name="a\ud800b\x00c\x1b\u202e", targets=("x\x08", "y"), epochs=1, windows=2, days=1
    )
    page = page_of(tmp_path / "run")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e]", page.source)
    assert "a" in page.text


UNFINISHED: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("stopped", {"reason": "SIGTERM", "exit_code": 143, "stage": "train", "epoch": 4, "step": 122},
     ("Reason: SIGTERM", "stage train, epoch 4, step 122", "Exit code 143.")),
    ("failed", {"reason": "TrainingError: the gradient is not finite", "exit_code": 3},
     ("the gradient is not finite",)),
    ("running", {"stage": "train", "epoch": 4, "step": 122}, ("has ended, the run was killed",)),
]  # fmt: skip


@pytest.mark.parametrize(("state", "status", "words"), UNFINISHED)
def test_unfinished_run_shows_progress_and_missing_files(
    tmp_path: Path, state: str, status: dict[str, Any], words: tuple[str, ...]
) -> None:
    write_unfinished_run(tmp_path / "night", state, **status)
    page = page_of(tmp_path / "night")
    assert page.text.startswith(f"night: {state}")
    for part in (*words, "Missing files", f"this run is {state}", "best validation loss", "in epoch 3"):
        assert part in page.text
    assert page.tags.count("svg") == 3
    assert "Checklist" not in page.text


@pytest.mark.parametrize("epochs", [0, 1])
def test_run_with_few_epochs_has_page(tmp_path: Path, epochs: int) -> None:
    write_unfinished_run(tmp_path / "run", "running", epochs=epochs)
    assert ("No epoch has been validated" in page_of(tmp_path / "run").text) == (epochs == 0)


def test_run_with_status_only_has_page(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", reason="OSError: no space", exit_code=1)
    page = page_of(tmp_path)
    for text in ("OSError: no space", "There is no checkpoint to resume from.", "has no checkpoints.", "No memory"):
        assert text in page.text
    assert "svg" not in page.tags


@pytest.mark.usefixtures("without_figures")
def test_unfinished_run_with_checkpoint_shows_resume_command(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    write_unfinished_run(folder, "stopped", reason="SIGTERM")
    (folder / "checkpoints" / "epoch-0003-step-00000122").mkdir(parents=True)
    (folder / "checkpoints" / "epoch-0003-step-00000122" / "manifest.json").write_text("{}")
    assert f"To resume from epoch-0003-step-00000122: pgat-fast train --resume '{folder}'" in page_of(folder).text


@pytest.mark.usefixtures("without_figures")
def test_run_without_prices_intervals_and_scenarios_has_page(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    results = write_finished_run(folder, targets=("spread",), epochs=1, windows=1, days=1)
    results["test"]["intervals"] = None
    results["test"]["mixture"] = {
        "nll": {"overall": 1.25, "by_target": {"spread": 1.5}, "by_horizon": [1.0, None]},
        "crps": {"overall": 0.5, "by_target": {"spread": None}, "by_horizon": [0.75, 0.125]},
    }
    results["adversarial"] = {"scenarios": {}}
    (folder / "results.json").write_text(json.dumps(results))
    page = page_of(folder)
    for text in (
        "This run has no forecast intervals.",
        "all 1.2500 0.50000",
        f"spread 1.5000 {DASH}",
        f"2 {DASH} 0.12500",
        "No scenarios were run.",
    ):
        assert text in page.text
    assert "Squared error, prices" not in page.text


def test_intervals_in_unknown_format_are_listed(tmp_path: Path) -> None:
    results = write_finished_run(tmp_path / "run", epochs=1, windows=2, days=1)
    results["test"]["intervals"] = {"scaled": {"0.8": {"inside": 0.75}}, "widths": [1.5, 2.5]}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    page = page_of(tmp_path / "run")
    assert "scaled 0.8 inside 0.7500 widths 1.500, 2.500" in page.text
    assert page.tags.count("svg") == 7


@pytest.mark.usefixtures("without_figures")
def test_page_without_matplotlib_explains_missing_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_finished_run(tmp_path / "run", epochs=1, windows=2, days=1)
    page = page_of(tmp_path / "run")
    assert 'This page has no figures: plots need matplotlib: pip install "pgat-fast[plots]"' in page.text
    assert "the report has no figures" in caplog.text
    assert "svg" not in page.tags
    assert "Checklist" in page.text


@pytest.mark.usefixtures("without_figures")
def test_page_is_written_to_given_path(tmp_path: Path) -> None:
    write_unfinished_run(tmp_path / "run", "running")
    out = tmp_path / "elsewhere" / "page.html"
    assert write_report(tmp_path / "run", out) == out
    assert out.is_file()
    assert not (tmp_path / "run" / "report.html").exists()
    with pytest.raises(ConfigError, match="is a folder: name the file to write"):
        write_report(tmp_path / "run", tmp_path)


@pytest.mark.usefixtures("without_figures")
def test_page_is_reproducible(tmp_path: Path) -> None:
    write_finished_run(tmp_path / "run", epochs=2, windows=3, days=2)
    first = write_report(tmp_path / "run").read_bytes()
    assert write_report(tmp_path / "run").read_bytes() == first


@pytest.mark.usefixtures("without_figures")
def test_damaged_run_keeps_old_page(tmp_path: Path) -> None:
    write_unfinished_run(tmp_path / "run", "running")
    page = write_report(tmp_path / "run").read_bytes()
    (tmp_path / "run" / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"results\.json: damaged"):
        write_report(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_bytes() == page


def test_values_are_formatted_with_suitable_precision() -> None:
    values = [None, True, 1234567, 0.0, 0.87654321, 12.3456, 12345.678, 1.5e-7, 2.5e12, float("inf"), "text"]
    expected = [DASH, "yes", "1,234,567", "0", "0.8765", "12.35", "12,346", "1.500e-07", "2.500e+12", "inf", "text"]
    assert [format_number(value) for value in values] == expected
    assert list(map(make_aligned_formatter([0.5, 12.25, None]), [0.5, 12.25, None])) == ["0.500", "12.250", DASH]
    assert list(map(make_aligned_formatter([1e-7, None]), [1e-7, None])) == ["1.0000e-07", DASH]
    assert [format_signed(value) for value in (0.5, -0.25, None)] == ["+0.5000", "\N{MINUS SIGN}0.2500", DASH]
    assert [format_duration(value) for value in (1.234, 90.0, 3599.0, 5025.0, None)] == [
        "1.23 s", "1.5 min", "1 h 00 min", "1 h 24 min", DASH
    ]  # fmt: skip
    times = ("2026-03-02T21:04:05.123+00:00", "2026-03-02T21:04:05", "soon")
    assert [format_timestamp(time) for time in times] == ["2026-03-02 21:04:05 UTC", "2026-03-02 21:04:05", "soon"]
