"""The processes of one training run: which this one is, what they tell each other, what they agree on.

Started by torchrun, or by `pgat-fast train --devices N`, each process trains on its share of every batch; torch's own
DistributedDataParallel adds their gradients up. What decides the course of a run (a stop, a limit of time, a gradient
that is not finite) is decided by all of them alike, at the same step. They speak of it over gloo, on the CPU, whatever
the gradients take.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pgat_fast.errors import BackendError, PgatError, RankError, first_line
from pgat_fast.meeting import job_at, meet_at
from pgat_fast.ranks import (
    agree_on_restarts,
    by_torchrun,
    end_for_good,
    is_distributed,
    joined,
    local_rank,
    local_size,
    may_be_restarted,
    over,
)
from pgat_kernels.torch_features import skip_buffer_broadcast

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_PLACE: Final = "pgat_fast/place/"
"""What the keys begin with under which every rank notes how far it has come: its step, how often it has met others."""
_ALIVE: Final = "pgat_fast/alive/"
"""What those begin with that every rank counts up as long as it lives."""
_BEAT_SECONDS: Final = 1.0
_ASK: Final = timedelta(seconds=5)
"""What the store may take to say what a rank has noted, once one is missing."""
_DONE: Final = "pgat_fast/done"
"""The key that the main rank sets when it needs the others no more: whether it has come to its end."""
_PATIENCE: Final = 30.0
"""Seconds that a rank may wait for others when one has ended the run for good, before it is ended, too."""


class World:
    """The process of a run that has but one. `Ranks` is one of several; all that is said here of ranks holds of both.

    Methods that say so are called by all ranks at the same place of their program.
    """

    def __init__(self, rank: int = 0, size: int = 1, job: str | None = None) -> None:
        self.rank, self.size = rank, size
        self.job = job
        """What all starts of this run by one torchrun have in common, and nothing else has; None without torchrun, and
        in other ranks than the main one."""
        self._told: list[str] = []

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share_of(self, indices: Tensor) -> Tensor:
        """The windows of a batch that are this rank's: every `size`-th, from `rank` on."""
        return indices[self.rank :: self.size]

    def weight_of(self, batch_size: int) -> float:
        """What a mean over this rank's share is multiplied by, so that the mean over ranks is that of the batch."""
        return len(range(self.rank, batch_size, self.size)) * self.size / batch_size

    def tell(self, word: str | None) -> None:
        """Tell all ranks a word, or that there is none. It passes while they compute. Called by all."""
        self._told = [word] if word else []

    def heard(self) -> list[str]:
        """The words that ranks have told last, in their order. Called by all, after `tell` or before all."""
        return self._told

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks, on the device of `values`. Called by all."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """What every rank has, in their order. Called by all."""
        return [value]

    def from_main(self, value: Any) -> Any:
        """What the main rank has. Called by all."""
        return value

    def wait_for(self, value: Tensor) -> None:
        """Until the device has computed `value`, for which all ranks are needed. Called by all."""
        value.item()

    def until_main_is_done(self, check: Callable[[], None]) -> None:
        """Wait for the main rank, which needs the others no more; `check` is called meanwhile, and may raise."""

    def reached(self, step: int) -> None:
        """Note how far this rank has come, for the others to read where it is missing."""

    def parallel(self, model: nn.Module) -> nn.Module:
        """What is called in training instead of `model`: gradients are the means over ranks. Called by all."""
        return model

    @contextmanager
    def adding_up(self, model: nn.Module, now: bool) -> Iterator[None]:
        """Around a forward and a backward pass of what `parallel` gave; unless `now`, gradients stay with the rank."""
        yield


class Ranks(World):
    """One of several processes, within a process group of torch.

    Where a rank does not come within `timeout` seconds, or has ended, RankError says which. Gradients on GPUs go over
    NCCL, which raises nothing: there the log says which, shortly before torch's own watchdog ends the process.
    """

    def __init__(self, device: torch.device, timeout: float, job: str | None = None) -> None:
        super().__init__(distributed.get_rank(), distributed.get_world_size(), job)
        self._device, self._timeout = device, timeout
        self._control = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._store = distributed.distributed_c10d._get_default_store()
        self._step = self._met = 0
        self._waits_since: float | None = None
        self._word: str | None = None
        self._any = torch.zeros(1, dtype=torch.int32)
        self._telling: distributed.Work | None = None
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="pgat-fast heartbeat", daemon=True)
        self._heart.start()

    def close(self, ended: bool = True) -> None:
        """Let go of the other ranks. `ended`: whether all has been done, without an error."""
        with suppress(Exception):  # the store may be gone
            if self.is_main:
                self._store.set(_DONE, "yes" if ended else "no")
        self._ended.set()
        self._heart.join(timeout=2 * _BEAT_SECONDS)

    def _beat(self) -> None:
        """Show that this rank lives; look whether it waits for one that does not come, and whether the run is over."""
        shared: Any = self._store
        beats, complained, store = 0, 0, shared.clone()  # the other connection is taken as long as somebody waits
        patience = min(_PATIENCE, self._timeout / 2)
        with suppress(Exception):  # the store is gone: so is the run
            while not self._ended.wait(_BEAT_SECONDS):
                beats += 1
                store.set(f"{_ALIVE}{self.rank}", str(beats))
                since = self._waits_since
                waited = 0.0 if since is None else time.monotonic() - since
                if waited > 0.9 * self._timeout and complained != self._met:
                    complained = self._met
                    threading.Thread(target=self._complain, daemon=True).start()
                if waited > patience and (code := over()) is not None:
                    end_for_good(code)  # it waits on a GPU for what will not come

    def _complain(self) -> None:
        logger.warning(
            "rank %d of %d has computed, or waited for others, for nearly %g s (run.rank_timeout_seconds): %s",
            self.rank, self.size, self._timeout, self.missing(),
        )  # fmt: skip

    def tell(self, word: str | None) -> None:
        # A number is faster than an object; hardly ever there is a word.
        self._word, self._any = word, torch.tensor([word is not None], dtype=torch.int32)
        self._telling = self._with_all(
            lambda: distributed.all_reduce(self._any, distributed.ReduceOp.MAX, self._control, async_op=True)
        )

    def heard(self) -> list[str]:
        if self._telling is not None:
            self._with_all(self._telling.wait)
            self._telling = None
        return [word for word in self.gather(self._word) if word is not None] if self._any.item() else []

    def total(self, values: Tensor) -> Tensor:
        summed = values.detach().clone()
        self._with_all(lambda: distributed.all_reduce(summed))
        return summed

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        self._with_all(lambda: distributed.all_gather_object(found, value, self._control))
        return found

    def from_main(self, value: Any) -> Any:
        shared = [value]
        self._with_all(lambda: distributed.broadcast_object_list(shared, 0, self._control))
        return shared[0]

    def wait_for(self, value: Tensor) -> None:
        with self._meeting():
            value.item()

    def until_main_is_done(self, check: Callable[[], None]) -> None:
        alive, seen = "", time.monotonic()
        while not self.is_main:
            check()
            try:
                if self._store.check([_DONE]):
                    if self._store.get(_DONE) == b"yes":
                        return
                    raise RuntimeError("the main rank has failed")
                if over() is not None:
                    raise RuntimeError("the run is over")
                beats = self._store.get(f"{_ALIVE}0").decode()
            except RuntimeError as error:
                raise self.lost(error) from error
            if beats != alive:
                alive, seen = beats, time.monotonic()
            elif time.monotonic() - seen > self._timeout:
                raise self.lost(RuntimeError("the main rank shows no sign of life"))
            time.sleep(0.2)

    def reached(self, step: int) -> None:
        self._step = step

    def parallel(self, model: nn.Module) -> nn.Module:
        own = [self._device.index or 0] if self._device.type == "cuda" else None
        with self._meeting():  # buffers are the same everywhere: they are constants
            return nn.parallel.DistributedDataParallel(model, device_ids=own, **skip_buffer_broadcast())

    @contextmanager
    def adding_up(self, model: nn.Module, now: bool) -> Iterator[None]:
        assert isinstance(model, nn.parallel.DistributedDataParallel)
        with self._meeting() if now else model.no_sync():
            yield

    @contextmanager
    def _meeting(self) -> Iterator[None]:
        """Around what waits for the other ranks somewhere."""
        try:
            self._met += 1
            self._store.set(f"{_PLACE}{self.rank}", f"{self._step} {self._met}")
            self._waits_since = time.monotonic()
            yield
        except RuntimeError as error:
            if _is_of_communication(error):
                raise self.lost(error) from error
            raise
        finally:
            self._waits_since = None

    def missing(self) -> str:
        """Which ranks do not answer or are behind this one, in words. Takes some seconds."""
        before = [self._noted(f"{_ALIVE}{rank}") for rank in range(self.size)]
        time.sleep(3 * _BEAT_SECONDS)
        words = []
        for rank in range(self.size):
            step, _, met = (self._noted(f"{_PLACE}{rank}") or "0 0").partition(" ")
            silent = self._noted(f"{_ALIVE}{rank}") == before[rank]
            if rank != self.rank and (silent or int(met) < self._met):
                words.append(f"rank {rank} {'does not answer' if silent else 'is behind'}, last seen at step {step}")
        return "; ".join(words) or "all of them live and have come as far as this one"

    def _noted(self, key: str) -> str | None:
        """What a rank has noted; None where it has not, or where the store is gone with the process that had it."""
        with suppress(Exception):
            self._store.wait([key], _ASK)
            return str(self._store.get(key).decode())
        return None

    def _with_all(self, speak: Callable[[], Result]) -> Result:
        with self._meeting():
            return speak()

    def lost(self, error: BaseException) -> RankError:
        """What to say of an error of torch's communication."""
        return RankError(
            f"rank {self.rank} of {self.size} waits for others in vain (limit {self._timeout:g} s, "
            f"run.rank_timeout_seconds): {self.missing()} ({first_line(error)[:200]})"
        )


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether torch failed to reach another rank: it names such errors in one way only for some of them."""
    words = (
        "gloo",
        "NCCL",
        "Connection closed",
        "Connection reset",
        "Timed out waiting",
        "ProcessGroup",
        "Broken pipe",
    )
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)


def to_cpu(tree: Any) -> Any:
    """A copy of nested dicts and lists with every tensor on the CPU; tensors that are there already are not copied."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu()
    if isinstance(tree, dict):
        return {key: to_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(to_cpu, tree))
    return tree


@contextmanager
def world_of_process(device: torch.device, timeout: float) -> Iterator[World]:
    """The world of this process: of the ranks that torchrun has started, or of one process.

    Raises RankError where the ranks do not find each other, BackendError where a restart has nothing to go on from.
    """
    if not is_distributed() and not by_torchrun():
        yield World()
        return
    limit = timedelta(seconds=timeout)
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
        own = PrefixStore(f"pgat_fast/start-{meet_at(store, rank, size, timeout)}", store)
        joined(own)
        job = job_at(store) if rank == 0 else None
        if size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            distributed.init_process_group(backend, store=own, rank=rank, world_size=size, timeout=limit)
            ranks = Ranks(device, timeout, job)
            agree_on_restarts(any(ranks.gather(may_be_restarted())))
    except PgatError:
        raise
    except RuntimeError as error:
        raise RankError(f"the ranks do not find each other within {timeout:g} s: {first_line(error)[:200]}") from error
    if size == 1:
        yield World(job=job)
        return
    try:
        yield ranks
    except BaseException:
        ranks.close(ended=False)
        if device.type != "cuda":  # NCCL would wait there for work that may never end
            _leave()
        raise
    ranks.close()
    _leave()


def _leave() -> None:
    with suppress(RuntimeError):  # one of the others may have ended
        distributed.destroy_process_group()


def device_of_rank(device: torch.device) -> torch.device:
    """`device`, or of several GPUs the one of this rank. Raises BackendError where it has none."""
    if device.type != "cuda" or not is_distributed():
        return device
    there = torch.cuda.device_count()
    if local_size() > there:  # all of this machine say so
        raise BackendError(f"{local_size()} processes on this machine, of which torch sees {there} GPUs: start fewer")
    own = torch.device("cuda", local_rank())
    torch.cuda.set_device(own)
    return own
