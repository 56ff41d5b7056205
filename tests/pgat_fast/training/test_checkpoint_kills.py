"""Bar R1: a process that is killed while it saves loses at most the checkpoint that it was saving."""

import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgat_fast.training.checkpoint import (
    Checkpoint,
    newest_good,
    prune,
    remove_orphans,
    save_checkpoint,
    verify_checkpoint,
)
from tests.pgat_fast.training.checkpoints import name_of, names_in

KILLS = 200
LONGEST = 0.12
"""Largest number of seconds until a kill: a few times the duration of a save, so that kills hit every part of one."""


def run(root: Path, last: int, large: Checkpoint, done: int) -> None:
    """Act as a long run: save, report the step, save it again with other metadata, and remove old checkpoints."""
    for step in range(last + 1, last + 1000):
        stored = replace(large, training=large.training | {"step": step}, about={"step": step})
        save_checkpoint(root, name_of(step), stored)
        os.write(done, step.to_bytes(4, "big"))
        save_checkpoint(root, name_of(step), replace(stored, about=stored.about | {"best": name_of(step)}))
        prune(root, 2)


def kill_while_saving(root: Path, last: int, large: Checkpoint, after: float) -> int:
    """Run in a child process, kill it `after` seconds later, and return the last step that it reported as saved."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run(root, last, large, writer)
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it ended by itself"
    last_reported = last
    while message := os.read(reader, 4):
        last_reported = int.from_bytes(message, "big")
    os.close(reader)
    return last_reported


@pytest.mark.multiprocess
def test_200_of_200_kills_lose_at_most_one_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "run" / "checkpoints"
    large = Checkpoint({"weight": torch.zeros(500_000)}, {"moments": [torch.ones(500_000)]})
    save_checkpoint(root, name_of(0), replace(large, training=large.training | {"step": 0}, about={"step": 0}))
    rng = random.Random(0)
    orphans = unfinished = 0
    last = 0
    for _ in range(KILLS):
        last_reported = kill_while_saving(root, last, large, rng.uniform(0, LONGEST))
        loaded = newest_good(root)
        assert loaded is not None
        step = loaded[1].training["step"]
        assert last_reported <= step <= last_reported + 1
        assert loaded[1].about["step"] == step
        orphans += any(name.endswith(".tmp") for name in names_in(root))
        unfinished += any(name.endswith(".previous") for name in names_in(root))
        remove_orphans(root)
        remaining = names_in(root)
        assert all(name.startswith("epoch-") and "." not in name for name in remaining)
        assert verify_checkpoint(root / remaining[-1]) == []
        prune(root, 2)
        last = step
    # Enough kills must have hit the middle of a save.
    assert orphans >= KILLS // 4
    print(f"{KILLS} kills, {orphans} left an orphan, {unfinished} a replacement to undo or to tidy up, {last} steps")
