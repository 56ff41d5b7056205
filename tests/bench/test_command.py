"""Tests of `pgat-fast bench` where the benchmarks, which are not part of the installed package, are missing."""

import sys

import pytest

from pgat_fast.cli import main

SUBCOMMANDS = ("compare", "check", "profile", "scaling", "roofline", "ranks", "report")


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_missing_benchmarks_are_reported_in_one_line(
    subcommand: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "bench"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bench", None)  # which import reports as a missing module
    assert main(["bench", subcommand]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the benchmarks are not part of the installed package: clone the repository" in line
    assert "pip install --editable ." in line


def test_missing_dependency_is_not_reported_as_missing_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bench.profile", raising=False)
    monkeypatch.setitem(sys.modules, "torch.profiler", None)
    with pytest.raises(ModuleNotFoundError, match=r"torch\.profiler"):
        main(["bench", "profile"])
