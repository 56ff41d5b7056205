"""The command `pgat-fast report`."""

import subprocess
import sys
from pathlib import Path

import pytest

from pgat_fast import exit_codes
from pgat_fast.cli import main
from pgat_fast.training.run_folder import write_status


def test_report_prints_path_of_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(tmp_path / "run", "stopped")
    assert main(["report", str(tmp_path / "run")]) == exit_codes.SUCCESS
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == exit_codes.SUCCESS
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "run" / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("run", "out", "message"),
    [
        ("nowhere", None, "nowhere: there is no such folder: name the folder of a run"),
        (".", None, "it has none of status.json, config.yaml, results.json: name the folder of a run"),
        ("run", ".", "is a folder: name the file to write"),
    ],
)
def test_invalid_paths_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, out: str | None, message: str
) -> None:
    write_status(tmp_path / "run", "stopped")
    options = [] if out is None else ["--out", str(tmp_path / out)]
    assert main(["report", str(tmp_path / run), *options]) == exit_codes.WRONG_INPUT
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.html").exists()


def test_report_does_not_import_torch(tmp_path: Path) -> None:
    write_status(tmp_path / "run", "stopped")
    script = (
        "import sys\nfrom pgat_fast.cli import main\n"
        f"assert main(['report', {str(tmp_path / 'run')!r}]) == 0\nassert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
