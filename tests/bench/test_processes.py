"""Tests of `bench.processes`: turns, and processes that fail, die or hang without stopping the others."""

import os
import time
from pathlib import Path

import pytest

from bench.processes import run_task, take_turns

ROOT = Path(__file__).parents[2]

MODULE = """
import os, signal, sys, time
from bench.processes import do_task

def measure(task):
    with open(task["log"], "a") as log:
        log.write(task["name"])
    if "raise" in task:
        raise ValueError("no good\\nwith details")
    if "die" in task:
        os.kill(os.getpid(), signal.SIGKILL)
    if "sleep" in task:
        time.sleep(60)
    print("something else")
    return {"name": task["name"], "cache": os.environ.get("TORCHINDUCTOR_CACHE_DIR")}

sys.exit(do_task(measure, sys.argv[2]))
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tasks_of_a_test.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "kernels"))))
    return tmp_path / "log"


@pytest.mark.multiprocess
def test_tasks_take_turns_with_separate_caches(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = {name: {"name": name, "log": str(log)} for name in ("a", "b")}
    records, order = take_turns("tasks_of_a_test", tasks, rounds=2, time_limit=60)
    assert order == ["a", "b", "b", "a"]
    assert log.read_text() == "abba"
    assert [record["name"] for record in records["b"]] == ["b", "b"]
    caches = [{record["cache"] for record in records[name]} for name in ("a", "b")]
    assert [len(task_caches) for task_caches in caches] == [1, 1]
    assert caches[0] != caches[1]
    assert not any(Path(cache).parent.exists() for task_caches in caches for cache in task_caches)
    assert "round 2 of 2: b: " in capsys.readouterr().err


@pytest.mark.multiprocess
def test_failed_task_is_reported_and_left_out_later(log: Path) -> None:
    tasks = {"a": {"name": "a", "log": str(log), "raise": True}, "b": {"name": "b", "log": str(log)}}
    records, order = take_turns("tasks_of_a_test", tasks, rounds=2, time_limit=60)
    assert records["a"] == [{"error": "ValueError: no good"}]
    assert order == ["a", "b", "b"]


def test_killed_process_is_reported(log: Path) -> None:
    record = run_task("tasks_of_a_test", {"name": "a", "log": str(log), "die": True}, time_limit=60)
    assert record == {"error": "the process ended with signal 9 (out of memory?)"}


def test_hanging_process_is_killed_at_time_limit(log: Path) -> None:
    started = time.monotonic()
    record = run_task("tasks_of_a_test", {"name": "a", "log": str(log), "sleep": True}, time_limit=0.5)
    assert record == {"error": "not done after 0.5 s"}
    assert time.monotonic() - started < 30
