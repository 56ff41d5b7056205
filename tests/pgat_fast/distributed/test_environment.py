"""What a rank reads in its environment, and the exit code that it returns to torchrun."""

import os
from pathlib import Path

import pytest

from pgat_fast import exit_codes
from pgat_fast.distributed import environment


class EndedError(Exception):
    """Raised instead of ending the process."""


@pytest.fixture
def restartable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of rank 1 of 2, which torchrun may restart twice."""

    def end(code: int) -> None:
        raise EndedError(code)

    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    variables |= {"TORCHELASTIC_RUN_ID": "job", "TORCHELASTIC_MAX_RESTARTS": "2", "TORCHELASTIC_RESTART_COUNT": "0"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "_exit", end)


@pytest.mark.parametrize(
    "code", [exit_codes.WRONG_INPUT, exit_codes.NOT_FINITE, exit_codes.OUT_OF_MEMORY, exit_codes.MEMORY_LIMIT, 138]
)
def test_a_run_that_ends_for_good_returns_zero_while_restarts_are_left(restartable: None, code: int) -> None:
    with pytest.raises(EndedError, match=r"^0$"):
        environment.exit_process(code)


@pytest.mark.parametrize("code", [exit_codes.FAILED, exit_codes.RANK_LOST])
def test_a_lost_rank_and_a_crash_are_reported_so_that_torchrun_restarts(restartable: None, code: int) -> None:
    with pytest.raises(EndedError, match=rf"^{code}$"):
        environment.exit_process(code)


def test_without_restarts_left_the_exit_code_is_kept(restartable: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert environment.restarts_left() == 0
    with pytest.raises(EndedError, match=r"^138$"):
        environment.exit_process(138)


def test_only_the_first_rank_writes_the_exit_code_file(
    restartable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "code"
    monkeypatch.setenv(environment.EXIT_CODE_FILE, str(file))
    with pytest.raises(EndedError):
        environment.exit_process(138)
    assert not file.exists()
    monkeypatch.setenv("RANK", "0")
    for code in (138, 0):  # the last start counts
        with pytest.raises(EndedError):
            environment.exit_process(code)
        assert file.read_text() == str(code)


def test_one_process_of_torchrun_belongs_to_a_job_but_is_not_distributed(
    restartable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert environment.is_distributed()
    assert not environment.is_main()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not environment.is_distributed()
    assert environment.is_main()
    assert environment.job_id() == "job"


def test_a_process_without_torchrun_exits_in_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.delenv(name, raising=False)
    assert (environment.job_id(), environment.restarts_left()) == (None, 0)
    with pytest.raises(SystemExit, match="3"):
        environment.exit_process(3)
