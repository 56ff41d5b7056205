"""Tests of `bench.report`: docs/performance.md and the README's table come only from the committed results."""

import argparse
import re
from pathlib import Path

import pytest

from bench import figures, report
from bench.plots import DRAWINGS, plots
from pgat_fast.errors import DataError

TABLE = "<!-- generated: speed -->\n{}<!-- end of speed -->\n"
EXPRESSION = re.compile(r"\{[{%].*?[%}]\}")


def test_only_text_between_markers_changes() -> None:
    text = report.render_readme(f"a\n{TABLE.format('old')}b\n")
    assert text.startswith("a\n<!-- generated: speed -->\n\n| combiner, batch | processor |")
    assert text.endswith("|\n\n<!-- end of speed -->\nb\n")
    assert "old" not in text
    assert report.render_readme(text) == text


def test_missing_markers_and_unknown_figures_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="expected one `<!-- generated: speed -->`"):
        report.render_readme("<!-- generated: speed -->\nand no end")
    monkeypatch.setattr(report, "TEMPLATE", tmp_path / "some.md")
    for unknown in ("light()", 'load("ranks").check.light', 'load("light")', "steps("):
        report.TEMPLATE.write_text(f"as fast as {{{{ {unknown} }}}}")
        with pytest.raises(DataError, match=r"some\.md: .*light|light\.json is missing|some\.md: unexpected"):
            report.render_page()


def test_every_figure_is_used_and_every_plot_is_shown() -> None:
    template = report.TEMPLATE.read_text()
    expressions = " ".join(EXPRESSION.findall(template))
    code = "".join(Path(module.__file__ or "").read_text() for module in (figures, report)) + expressions
    functions = [name for name, value in vars(figures).items() if getattr(value, "__module__", "") == figures.__name__]
    assert len(functions) > 20
    assert [name for name in functions if len(re.findall(rf"\b{name}\b", code)) < 2] == []
    assert set(re.findall(r"plots/(\w+)\.svg", template)) == set(DRAWINGS)


def test_template_contains_no_typed_figures() -> None:
    """Numbers with a unit or a decimal point come from results; the others are sizes."""
    text = EXPRESSION.sub("", report.TEMPLATE.read_text()).replace("19 of 20", "")  # the coverage of intervals
    assert re.findall(r"\d+\.\d+|\d+ ?(?:%|[GM]i?B\b|m?s\b|times|minutes|seconds|billion)", text) == []


def test_outdated_pages_are_detected_and_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "performance.md"
    readme.write_text(TABLE.format("faster than light\n"))
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "plots", lambda folder: [])
    assert report.run(argparse.Namespace(check=True)) == 1
    assert "README.md differs" in capsys.readouterr().out
    assert report.run(argparse.Namespace(check=False)) == 0
    assert report.run(argparse.Namespace(check=True)) == 0
    assert "faster than light" not in readme.read_text()


@pytest.mark.slow  # every plot twice
def test_plots_are_reproducible_bytewise(tmp_path: Path) -> None:
    first, second = (plots(tmp_path / name) for name in ("a", "b"))
    assert [path.stem for path in first] == list(DRAWINGS)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
