"""What ranks read in their environment, and how one that ends for good tells the others."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from pgat_fast import exit_codes, ranks
from pgat_fast.errors import ConfigError, RankError, StopRequested


class Store:
    """One of torch, in a dict."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.busy = 0.0

    def clone(self) -> "Store":
        return self

    def check(self, keys: list[str]) -> bool:
        return all(key in self.content for key in keys)

    def get(self, key: str) -> bytes:
        return self.content[key]

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        time.sleep(self.busy)
        return self.content.setdefault(key, value.encode())


class LeftError(Exception):
    """Instead of the end of the process."""


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """Of two ranks that have met, of which this is the second, and that torchrun may start again."""

    def leave(code: int) -> None:
        raise LeftError(code)

    environment = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    environment |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "2"}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(ranks, "_store", None)
    monkeypatch.setattr(ranks, "_agreed", None)
    found = Store()
    ranks.joined(found)
    return found


def end_with(error: BaseException) -> None:
    with ranks.ends_for_good():
        raise error


def test_what_would_come_again_ends_the_run_of_all(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LeftError, match=r"^0$"):  # for torchrun
        end_with(ConfigError("no such column"))
    assert ranks.over() == exit_codes.WRONG_INPUT
    assert capsys.readouterr().err == "error: no such column\n"
    with pytest.raises(LeftError, match=r"^0$"):  # another one, which misses the first
        end_with(RankError("rank 1 does not answer"))
    assert ranks.over() == exit_codes.WRONG_INPUT, "the first reason is the reason"


def test_a_rank_that_is_lost_is_a_reason_to_start_again(store: Store) -> None:
    with pytest.raises(RankError):
        end_with(RankError("rank 0 does not answer"))
    assert ranks.over() is None


def test_the_last_start_ends_with_the_code_itself(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    with pytest.raises(ConfigError):
        end_with(ConfigError("no such column"))
    assert ranks.over() == exit_codes.WRONG_INPUT
    ranks.agree_on_restarts(any_may=True)  # another machine has counted fewer
    with pytest.raises(LeftError, match=r"^0$"):
        end_with(ConfigError("no such column"))


def test_a_sigterm_is_not_handed_on(store: Store) -> None:
    """torchrun sends it to those that are left, before it starts all again."""
    with pytest.raises(LeftError):
        end_with(StopRequested("SIGTERM"))
    assert ranks.over() is None
    with pytest.raises(LeftError):
        end_with(StopRequested("SIGUSR1"))
    assert ranks.over() == 138


def test_before_ranks_have_met_an_error_is_what_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_store", None)
    with pytest.raises(ConfigError):
        end_with(ConfigError("no such file"))


def test_who_leaves_does_not_wait_for_a_busy_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_SAY_SECONDS", 0.1)
    store.busy = 3.0
    began = time.monotonic()
    with pytest.raises(LeftError):
        ranks.end_for_good(5)
    assert time.monotonic() - began < 2


def test_the_main_rank_writes_the_code_of_this_start(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "code"
    file.write_text("138")  # of an earlier start
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(ranks.CODE_FILE, str(file))
    ranks.joined(store)
    assert not file.exists()
    with pytest.raises(LeftError):
        ranks.end_for_good(4)
    assert file.read_text() == "4"


def test_one_process_of_torchrun_has_a_job_and_one_without_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, Any] = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for key, value in known.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert not ranks.by_torchrun()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert ranks.by_torchrun()
    assert not ranks.is_distributed()


def test_one_of_several_leaves_at_once_and_any_other_in_order(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LeftError, match=r"^3$"):
        ranks.leave(3)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SystemExit):
        ranks.leave(3)
