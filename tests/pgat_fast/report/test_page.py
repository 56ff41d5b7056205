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
from pgat_fast.monitoring.jsonl_logger import read_jsonl
from pgat_fast.report.formatting import (
    DASH,
    describe_skills,
    format_duration,
    format_number,
    format_signed,
    format_timestamp,
    make_aligned_formatter,
)
from pgat_fast.report.page import write_report
from pgat_fast.training.run_folder import write_status
from tests.pgat_fast.report.changes import make_unfinished, results_of

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
def page(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Return the page of the finished run."""
    return Page(write_report(trained, tmp_path_factory.mktemp("page") / "report.html"))


@pytest.fixture(scope="module")
def results(trained: Path) -> dict[str, Any]:
    return results_of(trained)


def test_tags_are_balanced_and_links_have_targets(page: Page) -> None:
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


def test_page_loads_nothing_and_has_no_scripts(page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video"} & set(page.tags)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    styles = " ".join(page.styles)
    assert "@import" not in styles
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", styles))
    assert "http:" not in page.source
    assert "https:" not in page.source


def test_page_has_dark_and_narrow_styles(page: Page) -> None:
    styles = " ".join(page.styles)
    assert "prefers-color-scheme: dark" in styles
    assert "max-width: 40rem" in styles
    assert '<meta name="viewport" content="width=device-width' in page.source
    # Both colour schemes define every colour of the figures.
    for variable in set(re.findall(r"var\((--[\w-]+)\)", page.source)):
        assert styles.count(f"{variable}:") == 2, f"{variable} is not defined for light and dark"


def test_headline_agrees_with_skills(results: dict[str, Any], page: Page) -> None:
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


def test_checklist_is_shown(results: dict[str, Any], page: Page) -> None:
    for line in results["checklist"]:
        assert f"{line['check']} {'yes' if line['passed'] else 'no'} {line['figure']}" in page.text
    passed = sum(line["passed"] for line in results["checklist"])
    assert f"Checklist: {passed} of {len(results['checklist'])}" in page.text


def test_all_errors_and_skills_are_shown(results: dict[str, Any], page: Page) -> None:
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


def test_all_other_sections_are_shown(results: dict[str, Any], page: Page, trained: Path) -> None:
    for level in results["test"]["intervals"]["scaled"][:1]:
        assert f"{level['nominal']:.0%} {100 * level['coverage']['overall']:.1f} %" in page.text
    for name, scenario in results["adversarial"]["scenarios"].items():
        assert name.replace("_", " ") in page.text
        assert scenario["description"] in page.text
    assert "the forecasts are not finite" in page.text
    data = results["data"]
    shown = [*results["checkpoints"]["kept"], data["sha256"], data["last_date"], f"rows {data['rows']}", "base price"]
    shown += [f"{name} {version}" for name, version in results["versions"].items()]
    shown += [f"{results['parameters']:,}", results["training_ended"], "learning_rate: 0.001"]
    shown += [f"peak process {format_number(results['memory']['peak_process_gib'], 3)} GiB", "windows per second"]
    (resume,) = (line for line in read_jsonl(trained / "metrics.jsonl") if line["stage"] == "resume")
    shown.append(f"resume {resume['epoch']} {resume['step']} {resume['checkpoint']}")
    assert [text for text in shown if text not in page.text] == []


def test_hostile_names_are_escaped_in_text_and_figures(finished: Path) -> None:
    names = {"log_Open": HOSTILE, "log_High": "x\x08y", "nightly": "a\ud800b\x00c\x1b\u202e"}
    results = (finished / "results.json").read_text()
    forecasts = (finished / "forecasts.csv").read_text()
    for name, hostile in names.items():
        results = results.replace(json.dumps(name), json.dumps(hostile))
        forecasts = forecasts.replace(name, '"' + hostile.replace('"', '""') + '"')
    (finished / "results.json").write_text(results)
    (finished / "forecasts.csv").write_text(forecasts)
    page = page_of(finished)
    assert HOSTILE in " ".join(page.shown)
    assert not {"script", "img"} & set(page.tags)
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e]", page.source)
    assert "a\N{REPLACEMENT CHARACTER}b" in page.text


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
def test_script_in_any_free_text_field_is_escaped(finished: Path, tmp_path: Path) -> None:
    folder = finished.rename(tmp_path / "<script>folder")
    results = results_of(folder)
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
    (folder / "config.yaml").write_text("# </pre></style><script>config</script>")

    page = page_of(folder)

    assert "script" not in page.tags
    text = "".join(page.shown)
    missing = [path for path, script in scripts.items() if script not in text and not NOT_SHOWN.match(path)]
    assert missing == []
    for word in ("baseline</script>", "scenario</script>", "package</script>", "config</script>", "folder"):
        assert f"<script>{word}" in text


UNFINISHED: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("stopped", {"reason": "SIGTERM", "exit_code": 143, "stage": "train", "epoch": 4, "step": 122},
     ("Reason: SIGTERM", "stage train, epoch 4, step 122", "Exit code 143.")),
    ("failed", {"reason": "TrainingError: the gradient is not finite", "exit_code": 3},
     ("the gradient is not finite",)),
    ("running", {"stage": "train", "epoch": 4, "step": 122}, ("has ended, the run was killed",)),
]  # fmt: skip


@pytest.mark.parametrize(("state", "status", "words"), UNFINISHED)
def test_unfinished_run_shows_progress_and_missing_files(
    finished: Path, state: str, status: dict[str, Any], words: tuple[str, ...]
) -> None:
    page = page_of(make_unfinished(finished, state, **status))
    assert page.text.startswith(f"nightly: {state}")
    for part in (*words, "Missing files", f"this run is {state}", "best validation loss", "in epoch"):
        assert part in page.text
    assert page.tags.count("svg") == 3
    assert "Checklist" not in page.text


def test_run_before_first_validation_has_page(finished: Path) -> None:
    page = page_of(make_unfinished(finished, "running", epochs=0))
    assert "No epoch has been validated" in page.text
    assert page.tags.count("svg") == 1


def test_run_with_status_only_has_page(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", reason="OSError: no space", exit_code=1)
    page = page_of(tmp_path)
    for text in ("OSError: no space", "There is no checkpoint to resume from.", "has no checkpoints.", "No memory"):
        assert text in page.text
    assert "svg" not in page.tags


@pytest.mark.usefixtures("without_figures")
def test_unfinished_run_with_checkpoint_shows_resume_command(finished: Path, tmp_path: Path) -> None:
    folder = make_unfinished(finished, "stopped", reason="SIGTERM").rename(tmp_path / "my run")
    (folder / "checkpoints" / "epoch-0003-step-00000122").mkdir(parents=True)
    (folder / "checkpoints" / "epoch-0003-step-00000122" / "manifest.json").write_text("{}")
    assert f"To resume from epoch-0003-step-00000122: pgat-fast train --resume '{folder}'" in page_of(folder).text


def test_run_without_prices_intervals_and_scenarios_has_page(finished: Path) -> None:
    results = results_of(finished)
    results["test"] |= {"price": None, "intervals": None, "mixture": {
        "nll": {"overall": 1.25, "by_target": {"spread": 1.5}, "by_horizon": [1.0, None]},
        "crps": {"overall": 0.5, "by_target": {"spread": None}, "by_horizon": [0.75, 0.125]},
    }}  # fmt: skip
    results["test"]["by_horizon"]["price"] = None
    results["adversarial"] = {"scenarios": {}}
    (finished / "results.json").write_text(json.dumps(results))
    page = page_of(finished)
    for text in (
        "This run has no forecast intervals.",
        "all 1.2500 0.50000",
        f"spread 1.5000 {DASH}",
        f"2 {DASH} 0.12500",
        "No scenarios were run.",
    ):
        assert text in page.text
    assert "Squared error, prices" not in page.text
    assert page.tags.count("svg") == 6


def test_intervals_in_unknown_format_are_listed(finished: Path) -> None:
    results = results_of(finished)
    results["test"]["intervals"] = {"scaled": {"0.8": {"inside": 0.75}}, "widths": [1.5, 2.5]}
    (finished / "results.json").write_text(json.dumps(results))
    page = page_of(finished)
    assert "scaled 0.8 inside 0.7500 widths 1.500, 2.500" in page.text
    assert page.tags.count("svg") == 7


@pytest.mark.usefixtures("without_figures")
def test_page_without_matplotlib_explains_missing_figures(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    page = page_of(finished)
    assert 'This page has no figures: plots need matplotlib: pip install "pgat-fast[plots]"' in page.text
    assert "the report has no figures" in caplog.text
    assert "svg" not in page.tags
    assert "Checklist" in page.text


@pytest.mark.usefixtures("without_figures")
def test_page_is_written_to_given_path(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "page.html"
    assert write_report(trained, out) == out
    assert out.is_file()
    assert not (trained / "report.html").exists()
    with pytest.raises(ConfigError, match="is a folder: name the file to write"):
        write_report(trained, tmp_path)


@pytest.mark.usefixtures("without_figures")
def test_page_is_reproducible_and_kept_if_run_is_damaged(finished: Path) -> None:
    page = write_report(finished).read_bytes()
    assert write_report(finished).read_bytes() == page
    (finished / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"results\.json: damaged"):
        write_report(finished)
    assert (finished / "report.html").read_bytes() == page


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
