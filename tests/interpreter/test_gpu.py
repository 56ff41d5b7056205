"""Tests that every section of the GPU benchmark gives figures, on few timesteps and with interpreted kernels."""

import json
from pathlib import Path

import pytest

from bench.gpu import measure
from bench.gpu.kernel_cases import CASES
from tests.interpreter.small_cases import SMALL_CASES


@pytest.mark.slow  # runs every kernel many times
@pytest.mark.usefixtures("large_tiles")
def test_sections_report_every_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the first case has all dtypes: the tests of each kernel cover them.
    cases = [SMALL_CASES[0], *(case._replace(dtypes=case.dtypes[:1]) for case in SMALL_CASES[1:])]
    monkeypatch.setattr(measure, "CASES", cases)
    monkeypatch.setattr(measure, "milliseconds", lambda run, device: float(run() is not None))
    sections = "parity,repeatable,kernels,others"
    settings = ["--device", "cpu", "--timesteps", "1", "--runs", "2", "--sections", sections, "--seconds", "1000"]
    assert measure.main([*settings, "--out", str(tmp_path / "gpu")]) == 0, capsys.readouterr().out
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert all(record["ok"] for *_, record in result["records"])
    reported = {(section, name.split(",")[0]) for section, name, _ in result["records"]}
    assert {case.operator for case in cases} == {case.operator for case in CASES}
    assert reported >= {(section, case.operator) for section in sections.split(",")[:3] for case in CASES}
    assert (
        "| parity | graph_attention, 13 nodes, mask, bias, bf16 | ok | of_what_rounding_explains"
        in (tmp_path / "gpu.md").read_text()
    )


def test_sections_without_time_are_listed_as_not_run(tmp_path: Path) -> None:
    assert measure.main(["--device", "cpu", "--seconds", "0", "--out", str(tmp_path / "gpu")]) == 0
    assert "| others | GRU | not run |" in (tmp_path / "gpu.md").read_text()


def test_missing_gpu_and_unknown_section_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        measure.main([])
    assert "there is no CUDA device here" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        measure.main(["--device", "cpu", "--sections", "speed"])
    assert "--sections: speed: not one of steps" in capsys.readouterr().err
