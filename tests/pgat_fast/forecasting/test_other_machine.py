"""Runs that were trained on another machine: a device, a backend and a data file that this one lacks."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from pgat_fast.config import load_config
from pgat_fast.errors import BackendError, DataError
from pgat_fast.forecasting.evaluate import evaluate
from pgat_fast.forecasting.load_run import load_run
from pgat_fast.forecasting.predict import predict
from pgat_fast.training.other_machine import (
    check_resumable,
    data_file_of,
    unavailable_settings,
    with_available_settings,
)
from tests.pgat_fast.forecasting.small_run import make_run

ABSENT = "cuda:77"


@pytest.fixture
def folder(tiny: list[str], tmp_path: Path) -> Path:
    """Return a run in a folder of another name, whose stored settings are those of a machine with many GPUs."""
    make_run(tmp_path / "trained", tiny)
    folder = (tmp_path / "trained").rename(tmp_path / "copied")
    path = folder / "config.yaml"
    text = path.read_text()
    for name, value in (
        ("device", ABSENT), ("backend", "triton"), ("precision", "bf16"), ("compile", "whole"), ("output", "/nowhere"),
    ):  # fmt: skip
        text = re.sub(rf"(?m)^  {name}: .*$", f"  {name}: {value}", text)
    path.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("device", "overrides", "level"),
    [
        ("auto", [], logging.WARNING),
        ("cpu", [], logging.INFO),
        ("auto", ["run.device=cpu"], logging.INFO),
        ("auto", ["use_gpu=false"], logging.INFO),
    ],
)
def test_run_is_computed_on_a_device_of_this_machine(
    folder: Path, device: str, overrides: list[str], level: int, data_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = load_run(folder, device=device, overrides=overrides)
    expected = "cuda" if device == "auto" and not overrides and torch.cuda.is_available() else "cpu"
    assert run.device.type == expected
    assert run.config.run.device == str(run.device)
    (record,) = [record for record in caplog.records if ABSENT in record.getMessage()]
    assert (record.levelno, f"trained on {ABSENT}, computed on {expected}" in record.getMessage()) == (level, True)
    if expected == "cpu":
        assert predict(run, data_file).equals(predict(load_run(folder, device="cpu"), data_file))


@pytest.mark.parametrize(("device", "overrides"), [(ABSENT, []), ("auto", [f"run.device={ABSENT}"]), ("gpu", [])])
def test_device_that_is_asked_for_must_exist(folder: Path, device: str, overrides: list[str]) -> None:
    with pytest.raises(BackendError, match="gpu" if device == "gpu" else f"{ABSENT} does not exist here"):
        load_run(folder, device=device, overrides=overrides)


def test_missing_data_file_is_named_with_the_setting_to_give(folder: Path, data_file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.csv"
    shutil.copy(data_file, moved)
    shutil.copy(f"{data_file}.note.json", f"{moved}.note.json")
    run = load_run(folder, device="cpu", overrides=[f"data.path={tmp_path}/gone.csv"])
    with pytest.raises(DataError, match=r"gone\.csv: there is no such file; .*add --set data\.path=FILE"):
        evaluate(run)
    assert predict(run, moved)["close"].notna().all()
    assert evaluate(load_run(folder, device="cpu", overrides=[f"data.path={moved}"])).test["windows"] > 0


def test_relative_data_path_is_also_sought_where_it_was_during_training(
    tiny: list[str], data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, [*tiny, "data.path=prices.csv"])
    about = {"data": {"path": "prices.csv", "absolute_path": str(data_file)}}
    assert data_file_of(config, tmp_path, about) == str(data_file)
    for other in ({}, {"data": {"path": "other.csv", "absolute_path": str(data_file)}}):
        with pytest.raises(DataError, match=r"prices\.csv: there is no such file in /"):
            data_file_of(config, tmp_path, other)
    Path("prices.csv").touch()
    assert data_file_of(config, tmp_path, about) == "prices.csv"


def test_training_states_what_this_machine_lacks(folder: Path, tmp_path: Path, data_file: Path) -> None:
    config = load_config(folder / "config.yaml")
    assert unavailable_settings(config.run)[0] == f"run.device={ABSENT}"
    with pytest.raises(BackendError, match=rf"run\.device={ABSENT}.*add --set run\.device=auto"):
        check_resumable(config, folder)
    replaced = with_available_settings(config, [])
    assert replaced.run.device == "auto"
    assert unavailable_settings(replaced.run) == []
    check_resumable(replaced, folder)
    assert with_available_settings(config, [f"device={ABSENT}"]).run.device == ABSENT
    with pytest.raises(DataError, match=r"add --set data\.path=FILE"):
        check_resumable(load_config(replaced, ["data.path=gone.csv"]), folder)
