"""What the README says of performance comes of the committed results, and of nothing else."""

import argparse
import re
from pathlib import Path

import pytest

from bench import report
from bench.figures import FIGURES
from bench.plots import DRAWINGS, plots
from pgat_fast.errors import DataError

BLOCK = "<!-- written: decoder_future -->\n{}<!-- end of decoder_future -->\n"


def test_what_stands_between_the_markers_is_replaced_and_nothing_else() -> None:
    found = report.rewritten(f"a\n{BLOCK.format('old')}b\n")
    assert found.startswith("a\n<!-- written: decoder_future -->\n\n| origin, 121 test windows to |")
    assert found.endswith("|\n\n<!-- end of decoder_future -->\nb\n")
    assert "old" not in found
    assert report.rewritten(found) == found


def test_what_there_is_not_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"asks for a block none: there are performance, "):
        report.rewritten("<!-- written: none -->\n<!-- end of none -->")
    with pytest.raises(DataError, match="1 blocks begin, 0 of them have their end"):
        report.rewritten("<!-- written: performance -->\nand no end")
    monkeypatch.setattr(report, "TEMPLATE", tmp_path / "some.md")
    report.TEMPLATE.write_text("as fast as {light}")
    with pytest.raises(DataError, match=r"some.md asks for {light}: there are accuracy, "):
        report.performance()


def test_every_figure_is_used_and_every_plot_is_shown() -> None:
    template = report.TEMPLATE.read_text()
    assert set(re.findall(r"\{(\w+)\}", template)) == set(FIGURES)
    assert set(re.findall(r"plots/(\w+)\.svg", template)) == set(DRAWINGS)


def test_no_figure_is_typed() -> None:
    """Numbers with a unit or a point come from results; what is left are sizes."""
    text = report.TEMPLATE.read_text().replace("19 times of 20", "")  # the level of intervals
    assert re.findall(r"\d+\.\d+|\d+ ?(?:%|[GM]i?B\b|m?s\b|times|minutes|seconds|billion)", text) == []


def test_a_readme_that_says_something_else_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(BLOCK.format("faster than light\n"))
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "plots", lambda folder: [])
    assert report.run(argparse.Namespace(check=True)) == 1
    assert report.run(argparse.Namespace(check=False)) == 0
    assert report.run(argparse.Namespace(check=True)) == 0
    assert "faster than light" not in readme.read_text()


@pytest.mark.slow  # every plot twice
def test_plots_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (plots(tmp_path / name) for name in ("a", "b"))
    assert [path.stem for path in first] == list(DRAWINGS)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
