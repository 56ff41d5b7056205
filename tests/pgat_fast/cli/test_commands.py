"""The commands `train`, `data` and `config`, and the imports of the command line."""

import datetime
import subprocess
import sys
from pathlib import Path

import pytest

from pgat_fast.cli import main
from pgat_fast.data import table
from tests.own_process import seconds_of_children


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_help_takes_less_than_300_ms() -> None:
    seconds = []
    for _ in range(5):
        before = seconds_of_children()
        assert python("-c", "from pgat_fast.cli import main; main(['--help'])").returncode == 0
        seconds.append(seconds_of_children() - before)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    "command",
    [["--version"], *([*command.split(), "--help"] for command in ("", "data build", "train", "plan", "info"))],
)
def test_help_imports_no_heavy_package(command: list[str]) -> None:
    script = (
        "import sys\nfrom pgat_fast.cli import main\n"
        f"try:\n    main({command!r})\nexcept SystemExit as exit:\n    assert exit.code == 0\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'yaml', 'tqdm', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = python("-c", script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "command",
    [
        "data",
        "config",
        "plan",
        "train",
        "sweep",
        "evaluate",
        "predict",
        "report",
        "checkpoint",
        "tune",
        "bench",
        "info",
    ],
)
def test_command_is_listed_and_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([command, "--help"])
    summary = capsys.readouterr().out.split("\n\n")[1].splitlines()[0]
    assert summary[0].isupper()
    assert summary.endswith(".")
    words = " ".join(listed.split())
    assert f"{command} {summary[0].lower()}{summary[1:-1]}" in words


def test_packages_import_without_torch_and_jinja2() -> None:
    result = python("-c", "import sys, pgat_fast, pgat_kernels; assert not {'torch', 'jinja2'} & set(sys.modules)")
    assert result.returncode == 0, result.stderr


def test_compat_is_available_without_importing_compiler() -> None:
    """torch's compiler takes three seconds to import, and loading a model does not need it."""
    names = "pgat_fast.compat.from_original_layout, pgat_fast.compat.Model, pgat_fast.build_model"
    result = python("-c", f"import sys, pgat_fast; {names}; assert 'torch._dynamo' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_train_prints_results_with_baselines_and_keeps_existing_run(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pgat", "pgat-2"):
        assert main(["train", "--quiet", "--set", *tiny, "training.max_steps=1"]) == 0
        printed = capsys.readouterr().out
        assert f"runs/{name}: adjacency.csv, checkpoints, config.yaml, forecasts.csv, intervals.json" in printed
        for row in ("model", "last_value", "zero_return", "drift", "test, 6 windows, prices"):
            assert row in printed
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["pgat", "pgat-2"]


def test_data_build_prints_summary_and_data_check_finds_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "file.csv"
    assert main(["data", "build", "--rows", "40", "--targets", "levels", "--out", str(out)]) == 0
    assert f"{out}: 40 rows from 2015-11-04 to 2015-12-31, 118 columns" in capsys.readouterr().out
    windows = ["--set", "seq_len=6", "label_len=3", "pred_len=2", "validation_length=6", "test_length=7"]
    assert main(["data", "check", str(out), *windows, "target_kind=levels"]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_data_build_prints_base_price_and_note_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "file.csv"
    assert main(["data", "build", "--rows", "40", "--out", str(out)]) == 0
    assert f"close before the first row: 2109.79, stored in {out}.note.json" in capsys.readouterr().out


def test_data_check_lists_problems_and_exits_with_one(
    data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = data_file.read_text().splitlines()
    lines[5] = lines[5] + ",1"
    cells = lines[9].split(",")
    lines[9] = ",".join([cells[0], "nan", *cells[2:]])
    broken = tmp_path / "broken.csv"
    broken.write_text("\n".join(lines) + "\n")
    assert main(["data", "check", str(broken)]) == 1
    printed = capsys.readouterr().out
    assert "row 6" in printed
    assert "row 10, column log_Open" in printed
    assert "at least 360 rows" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--set", "training.epoch=3"], "did you mean"),
        (["data", "check", "nowhere.csv"], "nowhere.csv: file not found"),
        (["config", "show", "--set", "model.d_model=wide"], "model.d_model"),
        (["data", "build", "--prices", "nowhere.csv"], "nowhere.csv"),
        (["data", "build", "--rows", "0"], "0 rows"),
        (["data", "build", "--out", "."], "names no file"),
        (["data", "build", "--prices", "a" * 300], "too long"),
        (["data", "build", "--rows", "5", "--out", "a" * 300], "too long"),
        (["train", "--set", "data.path=" + "a" * 300], "too long"),
    ],
)
def test_wrong_input_prints_error_and_exits_with_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert not captured.out


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.rows=41", "data.rows is 41"),
        ("data.rows=10", "10 rows are too few"),
        ("data.targets=log_Open,log_High,log_Low,log_Clse", "log_Clse"),
        ("data.target_kind=levels", "set data.target_kind to returns"),
        ("training.batch_size=4", "no problems found"),
    ],
)
def test_data_check_with_settings_finds_training_errors(
    tiny: list[str], data_file: Path, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    code = main(["data", "check", str(data_file), "--set", *tiny, setting])
    assert message in capsys.readouterr().out
    assert code == (0 if "no problems" in message else 1)


@pytest.mark.parametrize("with_settings", [False, True])
def test_data_check_reads_the_file_once_and_states_each_fault_once(
    tiny: list[str],
    data_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    with_settings: bool,
) -> None:
    rows = [line.split(",") for line in data_file.read_text().splitlines()]
    for row in rows[20:]:
        row[0] = str(datetime.date.fromisoformat(row[0]) + datetime.timedelta(days=364))  # a gap of a year
    path = tmp_path / "gap.csv"
    path.write_text("\n".join(map(",".join, rows)) + "\n")
    (tmp_path / "gap.csv.note.json").write_text("no note")
    reads: list[object] = []
    read = table.read_regular_file
    monkeypatch.setattr(table, "read_regular_file", lambda *args: reads.append(args) or read(*args))
    settings = ["--set", *tiny] if with_settings else []
    main(["data", "check", str(path), *settings])
    said = capsys.readouterr().out + caplog.text
    assert len(reads) == 1
    assert said.count("a gap of") == 1
    assert said.count("no note of `pgat-fast data build`") == 1


def test_data_check_accepts_any_columns_without_celestial_graph(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"2024-01-{day:02d},{day % 3},{day % 7}" for day in range(1, 31)]
    (tmp_path / "own.csv").write_text("\n".join(["date,a,b", *rows, ""]))
    sizes = ["use_celestial_graph=false", "enc_in=2", "dec_in=2", "c_out=1"]
    assert main(["data", "check", str(tmp_path / "own.csv"), "--set", *tiny, *sizes]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_train_exits_with_three_if_gradient_is_not_finite(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--quiet", "--set", *tiny, "learning_rate=1e30", "lr_schedule=constant"]) == 3
    assert "error: epoch 1, step 2: the gradient is not finite" in capsys.readouterr().err


@pytest.mark.multiprocess
def test_train_logs_raised_width_and_progress(tiny: list[str]) -> None:
    settings = [*tiny, "model.d_model=14", "training.max_steps=1", "run.log_interval=1"]
    result = python("-m", "pgat_fast", "train", "--set", *settings)
    assert result.returncode == 0, result.stderr
    assert "d_model 14 raised to 26, the next multiple of lcm(13 nodes, 1 heads)" in result.stderr
    assert "epoch 1, step 1 of 5: mean train loss" in result.stderr
