"""Folders of runs: creation, lookup, lock, log and status."""

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgat_fast import load_config
from pgat_fast.errors import ConfigError
from pgat_fast.training.run_folder import (
    CHECKPOINTS,
    checkpoint_of,
    has_checkpoints,
    locked,
    log_file,
    new_folder,
    read_status,
    run_folders,
    run_of_job,
    write_status,
)

HOLD = """
import sys, time
from pathlib import Path
from pgat_fast.training.run_folder import locked, write_status
with locked(Path(sys.argv[1])):
    write_status(Path(sys.argv[1]), "running")
    print("held", flush=True)
    time.sleep(60)
"""


def test_new_folders_have_different_names(tmp_path: Path) -> None:
    names = [new_folder(tmp_path / "runs", "mine").name for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]


def test_error_names_output_where_no_folder_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.output .*file"):
        new_folder(tmp_path / "file", "mine")


def test_run_folders_are_listed_newest_first(tmp_path: Path) -> None:
    assert run_folders(tmp_path, "mine") == []
    for name in ("mine", "mine-2", "mine-10", "mine-x", "other-12", "mine-1-99"):
        (tmp_path / name).mkdir()
    assert [path.name for path in run_folders(tmp_path, "mine")] == ["mine-10", "mine-2", "mine"]
    assert run_folders(tmp_path / "nowhere", "mine") == []
    assert not has_checkpoints(tmp_path / "mine")
    (tmp_path / "mine" / CHECKPOINTS / "epoch-0000-step-00000000").mkdir(parents=True)
    assert not has_checkpoints(tmp_path / "mine")
    (tmp_path / "mine" / CHECKPOINTS / "epoch-0000-step-00000000" / "manifest.json").write_text("{}")
    assert has_checkpoints(tmp_path / "mine")


def test_run_folder_and_checkpoint_paths_are_distinguished(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / CHECKPOINTS / "epoch-0001-step-00000005"
    checkpoint.mkdir(parents=True)
    assert checkpoint_of(tmp_path / "run") == (tmp_path / "run", None)
    assert checkpoint_of(tmp_path / "run" / CHECKPOINTS) == (tmp_path / "run", None)
    assert checkpoint_of(checkpoint) == (tmp_path / "run", checkpoint.name)
    for invalid_path in (tmp_path, tmp_path / "nowhere", checkpoint.with_name("nowhere")):
        with pytest.raises(ConfigError, match="neither the folder of a run"):
            checkpoint_of(invalid_path)


def test_second_process_is_rejected_within_a_second_with_id_of_first(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        started = time.monotonic()
        with pytest.raises(ConfigError, match=rf"another process \(process {holder.pid} "), locked(tmp_path):
            pass
        assert time.monotonic() - started < 1.0
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locked(tmp_path):  # a killed process holds no lock
        pass


def test_status_is_read_back_and_invalid_status_is_empty(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    write_status(tmp_path, "stopped", reason="SIGTERM", exit_code=143, epoch=3)
    status = read_status(tmp_path)
    assert (status["state"], status["reason"], status["exit_code"], status["epoch"]) == ("stopped", "SIGTERM", 143, 3)
    (tmp_path / "status.json").write_text("[1")
    assert read_status(tmp_path) == {}
    (tmp_path / "status.json").write_text(json.dumps([1]))
    assert read_status(tmp_path) == {}


def test_log_of_run_is_appended_and_closed(tmp_path: Path) -> None:
    logger = logging.getLogger("pgat_fast.somewhere")
    handlers = list(logging.getLogger("pgat_fast").handlers)
    for word in ("one", "two"):
        with log_file(tmp_path):
            logger.info("line %s", word)
    logger.warning("after the run")
    text = (tmp_path / "train.log").read_text()
    assert [line.split(" INFO ")[1] for line in text.splitlines()] == ["line one", "line two"]
    assert logging.getLogger("pgat_fast").handlers == handlers


def test_log_that_cannot_be_written_raises_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").mkdir()
    with log_file(tmp_path):
        logging.getLogger("pgat_fast").info("a line")
    assert "Traceback" not in capsys.readouterr().err


def test_run_of_job_is_found_once_it_has_saved_checkpoint(tmp_path: Path) -> None:
    config = load_config(None, [f"run.output={tmp_path}", "run.name=mine"])
    assert run_of_job("ours", config, None) is None
    for name, job in (("mine", "ours"), ("mine-2", "theirs"), ("elsewhere", "ours too")):
        folder = tmp_path / name
        (folder / CHECKPOINTS / "epoch-0000-step-00000000").mkdir(parents=True)
        write_status(folder, "failed", job=job)
    assert run_of_job("ours", config, None) is None, "it has saved nothing"
    for name in ("mine", "mine-2", "elsewhere"):
        (tmp_path / name / CHECKPOINTS / "epoch-0000-step-00000000" / "manifest.json").write_text("{}")
    assert run_of_job("ours", config, None) == tmp_path / "mine"
    assert run_of_job("ours too", config, None) is None
    assert run_of_job("ours too", config, tmp_path / "elsewhere") == tmp_path / "elsewhere"
