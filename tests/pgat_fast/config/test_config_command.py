"""`pgat-fast config show`."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from pgat_fast.cli import config as command
from pgat_fast.config import dump_config, load_config
from pgat_fast.errors import ConfigError

ROOT = Path(__file__).parents[3]


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["config", *words])
    result: int = args.run(args)
    return result


def test_show_prints_resolved_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train_epochs: 3\n")
    assert call("show", "--config", str(path), "--set", "seed=1", "lr_schedule=constant", "--set", "seed=2") == 0
    expected = load_config({"epochs": 3, "seed": 2, "lr_schedule": "constant"})
    assert capsys.readouterr().out == dump_config(expected)


def test_show_without_arguments_prints_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show") == 0
    assert capsys.readouterr().out == dump_config(load_config())


def test_described_configuration_loads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "--describe", "--set", "epochs=3") == 0
    path = tmp_path / "c.yaml"
    path.write_text(capsys.readouterr().out)
    assert "# passes over the training windows" in path.read_text()
    assert load_config(path) == load_config({"epochs": 3})


def test_wrong_setting_raises_config_error() -> None:
    with pytest.raises(ConfigError, match=r"override 'epochs=0': training.epochs: found 0"):
        call("show", "--set", "epochs=0")


def test_parser_imports_no_heavy_packages() -> None:
    code = (
        "import argparse, sys; from pgat_fast.cli import config; "
        "config.add_parser(argparse.ArgumentParser().add_subparsers()); "
        "print({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules))"
    )
    completed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout) == (0, "set()\n")
