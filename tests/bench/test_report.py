"""The README's tables and plots come of the committed results, and nothing else."""

import argparse
from pathlib import Path

import pytest

from bench import report
from pgat_fast.errors import DataError


def test_what_stands_between_the_markers_is_replaced_and_nothing_else() -> None:
    text = "a\n<!-- table: accuracy -->\nold\n<!-- end of table -->\nb\n"
    found = report.rewritten(text)
    assert found.startswith("a\n<!-- table: accuracy -->\n\n| backend, precision |")
    assert found.endswith("|\n\n<!-- end of table -->\nb\n")
    assert "old" not in found
    assert report.rewritten(found) == found


def test_a_table_that_there_is_not_is_an_error() -> None:
    with pytest.raises(DataError, match=r"asks for a table none: there are reference_steps, fast_steps"):
        report.rewritten("<!-- table: none -->\n<!-- end of table -->")


def test_a_readme_that_says_something_else_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table: accuracy -->\nfaster than light\n<!-- end of table -->")
    monkeypatch.setattr(report, "README", readme)
    monkeypatch.setattr(report, "plots", lambda folder: [])
    assert report.run(argparse.Namespace(check=True)) == 1
    assert report.run(argparse.Namespace(check=False)) == 0
    assert report.run(argparse.Namespace(check=True)) == 0
    assert "faster than light" not in readme.read_text()


def test_plots_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (report.plots(tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["speed.svg", "history.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
