"""How the ranks of one start of a job find each other, and how they know the job again after another start."""

import time
import uuid
from datetime import timedelta
from itertools import count
from typing import Final

from torch.distributed.distributed_c10d import Store

from pgat_fast.errors import BackendError, RankError
from pgat_fast.ranks import restarts

_trainings = count(1)
"""Of this process."""


def job_at(store: Store) -> str:
    """The name of what this process does now and processes before it, in the same place, have done. For the main rank.

    torchrun keeps `store` for all starts of a job. Neither its own name for a job (which another one may have had) nor
    its count of restarts (each machine has its own) tells two jobs apart.
    """
    name = uuid.uuid4().hex
    kept: str = store.compare_set(f"pgat_fast/job-{next(_trainings)}", "", name).decode()
    if kept == name and restarts():
        raise BackendError(
            "torchrun has started this job before, but not kept its store: which run is to go on? Start it again, with "
            "train --resume"
        )
    return kept


_STARTS: Final = "pgat_fast/starts"
"""How often the main rank has come to the store."""
_POLL_SECONDS: Final = 0.02


def meet_at(store: Store, rank: int, size: int, timeout: float) -> int:
    """Wait for all ranks of this start of the job; returns its number, from 1.

    torchrun keeps one store for all starts of a job, and what ended processes wrote is still in it: torch itself would
    connect to them. How often the machine of a rank was started anew is no number that all have. So the main rank
    gives each start the next number of a counter, and tells it to every rank that asks. A rank asks under a name that
    no other process has had, and confirms the answer; the main one answers until all have.

    Raises RankError that names who has not come within `timeout` seconds.
    """
    limit = timedelta(seconds=timeout)
    if rank:
        name = uuid.uuid4().hex
        store.set(f"{_STARTS}/asks/{rank}", name)
        store.wait([f"{_STARTS}/answer/{name}"], limit)
        start = int(store.get(f"{_STARTS}/answer/{name}"))
        store.set(f"{_STARTS}/{start}/{rank}", "")
        return start
    start = store.add(_STARTS, 1)
    missing, until = set(range(1, size)), time.monotonic() + timeout
    while missing:
        for other in sorted(missing):
            if store.check([f"{_STARTS}/{start}/{other}"]):
                missing.discard(other)
            elif store.check([f"{_STARTS}/asks/{other}"]):
                store.set(f"{_STARTS}/answer/{store.get(f'{_STARTS}/asks/{other}').decode()}", str(start))
        if missing and time.monotonic() > until:
            ranks = ", ".join(map(str, sorted(missing)))
            raise RankError(f"the ranks do not find each other within {timeout:g} s: rank {ranks} did not come")
        time.sleep(_POLL_SECONDS)
    return start
