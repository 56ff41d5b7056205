"""Process groups of a training run: `SingleProcess`, and `DistributedGroup` on top of `torch.distributed`.

Both have the same interface. All ranks must call collective methods in the same order. DistributedDataParallel averages
gradients over NCCL on GPUs and gloo on CPUs; all other communication uses gloo.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # missing in the stubs of torch
from torch.distributed.distributed_c10d import PrefixStore, Store

from pgat_fast import exit_codes
from pgat_fast.distributed import environment
from pgat_fast.errors import BackendError, ConfigError, RankError, first_line
from pgat_kernels.torch_features import skip_buffer_broadcast

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_DIAGNOSIS_SECONDS: Final = 10.0
"""Time in which the other ranks must answer after a collective has failed."""
_POLL_SECONDS: Final = 2e-4
_COMMUNICATION_ERRORS: Final = (
    "gloo", "NCCL", "Connection closed", "Connection reset", "Timed out waiting", "ProcessGroup", "Broken pipe",
)  # fmt: skip
"""Substrings of the messages of communication errors that torch raises as a plain RuntimeError."""


class SingleProcess:
    """A process that trains alone; every collective is the identity.

    Attributes:
        rank: number of this process, from 0.
        size: number of ranks.
        lockstep: whether there are other ranks, which must take every decision alike and at the same step. Then the
            host waits for the device in each step.
    """

    rank, size, lockstep = 0, 1, False

    @property
    def is_main(self) -> bool:
        """Whether this is the first rank, which writes the files."""
        return self.rank == 0

    @property
    def suffix(self) -> str:
        """Suffix that makes file names unique to this rank; empty for a single process."""
        return ""

    def shard(self, indices: Tensor) -> Tensor:
        """Return the part of `indices` (int64 [B]) that this rank computes: every `size`-th element from `rank` on."""
        return indices[self.rank :: self.size]

    def loss_weight(self, batch_size: int) -> float:
        """Return the factor by which the mean over the shard of this rank enters the mean over ranks.

        With it, the mean over ranks is the mean over the `batch_size` windows, even for shards of unequal sizes.
        """
        return len(range(self.rank, batch_size, self.size)) * self.size / batch_size

    def seed_step(self, seed: int, step: int) -> None:
        """Seed torch for optimizer step number `step`, if there are several ranks.

        Then dropout depends on the seed, the rank and the step alone.
        """

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training, whose gradients are means over ranks. Collective."""
        return model

    @contextmanager
    def backward(self, model: nn.Module, average: bool) -> Iterator[None]:
        """Enclose a forward and backward pass of the wrapped `model`; without `average`, gradients stay local."""
        yield

    def synchronize(self, value: Tensor) -> None:
        """Wait until the device has computed `value`, which depends on all ranks. Collective."""

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over ranks, on their device. Collective."""
        return values

    def all_gather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in rank order. It must be picklable. Collective."""
        return [value]

    def all_gather_requests(self, request: Result | None) -> list[Result]:
        """Return the `request` of every rank that has one, in rank order. It must be picklable. Collective.

        Costs one small all-reduce if no rank has a request.
        """
        return [] if request is None else [request]

    def run_on_main(self, function: Callable[[], Result]) -> Result:
        """Call `function` on the first rank and return its picklable result on every rank. Collective.

        If `function` raises, the first rank raises that error, and the others raise RankError with the same exit code.
        """
        return function()

    def poll(self, check: Callable[[], None]) -> None:
        """Call `check`, which may raise, if this process can stop without the agreement of other ranks."""
        check()

    def close(self, failed: bool = False) -> None:
        """Leave the group. With `failed`, other ranks may be lost or still running."""


class DistributedGroup(SingleProcess):
    """One of several ranks.

    A collective raises RankError if another rank has ended or does not take part within `timeout` seconds.
    """

    lockstep = True

    def __init__(self, device: torch.device, timeout: float) -> None:
        """Join the group of the ranks that torchrun has started.

        Args:
            device: device of this rank; decides between NCCL and gloo for gradients.
            timeout: seconds to wait for the other ranks, `run.rank_timeout_seconds`.

        Raises:
            RankError: some ranks have not joined within `timeout`; the message names them.
            ConfigError: torchrun may restart ranks of several machines, but keeps the store of earlier starts.
        """
        self.rank, self.size = environment.rank(), environment.world_size()
        self._device, self._timeout = device, timeout
        limit = timedelta(seconds=timeout)
        backend = "nccl" if device.type == "cuda" else "gloo"
        # NCCL's watchdog aborts the process without naming a rank, so `synchronize` must time out first.
        margin = timedelta(seconds=60 if backend == "nccl" else 0)
        try:
            distributed.init_process_group(
                backend, store=_joined_store(limit), rank=self.rank, world_size=self.size, timeout=limit + margin
            )
            self._control = distributed.new_group(backend="gloo", timeout=limit)
            self._diagnosis = distributed.new_group(backend="gloo", timeout=limit)  # works after the other has failed
        except RuntimeError as error:
            if isinstance(error, RankError):
                raise
            raise RankError(f"the ranks did not connect within {timeout:g} s: {first_line(error)[:200]}") from error

    @property
    def suffix(self) -> str:
        return f"-rank-{self.rank}"

    def seed_step(self, seed: int, step: int) -> None:
        import numpy as np

        (state,) = np.random.SeedSequence([seed, self.rank, step]).generate_state(1, np.uint64)
        torch.manual_seed(int(state >> np.uint64(1)))

    def wrap(self, model: nn.Module) -> nn.Module:
        device_ids = [self._device.index or 0] if self._device.type == "cuda" else None
        with self._communication():  # buffers are constants and need no broadcast
            return nn.parallel.DistributedDataParallel(model, device_ids=device_ids, **skip_buffer_broadcast())

    @contextmanager
    def backward(self, model: nn.Module, average: bool) -> Iterator[None]:
        assert isinstance(model, nn.parallel.DistributedDataParallel)
        with self._communication() if average else model.no_sync():
            yield

    def synchronize(self, value: Tensor) -> None:
        if value.is_cuda:  # NCCL would wait indefinitely
            event, deadline = torch.cuda.Event(), time.monotonic() + self._timeout
            event.record()
            while not event.query():
                if time.monotonic() > deadline:
                    raise self._rank_error("the GPU is waiting for NCCL")
                time.sleep(_POLL_SECONDS)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        summed = values.detach().clone()
        with self._communication():
            distributed.all_reduce(summed)
        return summed

    def all_gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        with self._communication():
            distributed.all_gather_object(gathered, value, self._control)
        return gathered

    def all_gather_requests(self, request: Result | None) -> list[Result]:
        any_request = torch.tensor([request is not None], dtype=torch.int32)
        with self._communication():
            distributed.all_reduce(any_request, distributed.ReduceOp.MAX, self._control)
        return [entry for entry in self.all_gather(request) if entry is not None] if any_request.item() else []

    def run_on_main(self, function: Callable[[], Result]) -> Result:
        outcome: list[Any] = [None, None]
        failure: BaseException | None = None
        if self.is_main:
            try:
                outcome[0] = function()
            except BaseException as error:
                failure, outcome[1] = error, exit_codes.of_error(error)
        with self._communication() if failure is None else suppress(RuntimeError):
            distributed.broadcast_object_list(outcome, 0, self._control)
        if failure is not None:
            raise failure
        value, exit_code = outcome
        if exit_code is not None:
            raise RankError("rank 0 has failed: see its error message", exit_code)
        return cast(Result, value)

    def poll(self, check: Callable[[], None]) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        if failed and self._device.type == "cuda":  # NCCL would wait for work that may never end
            return
        if distributed.is_initialized():
            with suppress(RuntimeError):  # another rank may have ended
                distributed.destroy_process_group()

    @contextmanager
    def _communication(self) -> Iterator[None]:
        """Convert a communication error within the block to a RankError."""
        try:
            yield
        except RuntimeError as error:
            is_communication_error = isinstance(error, distributed.DistError) or any(
                text in str(error) for text in _COMMUNICATION_ERRORS
            )
            if isinstance(error, RankError) or not is_communication_error:
                raise
            raise self._rank_error(first_line(error)[:200]) from error

    def _rank_error(self, reason: str) -> RankError:
        """Return the error for a collective that failed for `reason`. On the first rank, it names hanging ranks."""
        seconds = min(_DIAGNOSIS_SECONDS, self._timeout)
        missing = "all ranks answer now"
        try:
            distributed.monitored_barrier(self._diagnosis, timedelta(seconds=seconds), wait_all_ranks=True)
        except RuntimeError as error:
            hanging = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
            missing = "another rank has ended or hangs: see the logs of rank 0 and of torchrun"
            if hanging is not None:
                missing = f"rank {hanging[1]} does not answer"
        return RankError(
            f"rank {self.rank} of {self.size} cannot reach all others (limit {self._timeout:g} s, "
            f"run.rank_timeout_seconds): {missing} ({reason}). Continue with --resume"
        )


def _joined_store(limit: timedelta) -> Store:
    """Wait until all ranks have joined, and return the key-value store of this start of the job."""
    rank, size, shared = environment.rank(), environment.world_size(), environment.shares_agent_store()
    if shared and environment.restarts_left() > 0 and environment.local_world_size() < size:
        raise ConfigError(
            "torchrun --max-restarts on several machines: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment "
            "of torchrun; otherwise ranks connect to those of an earlier start"
        )
    # On one machine, the restart count separates the keys of this start from those of earlier ones.
    prefix = f"start-{environment.restart_count()}" if shared else "start"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    hosts = rank == 0 and not shared
    store = PrefixStore(prefix, TCPStore(address, port, size, hosts, limit, wait_for_workers=False, multi_tenant=True))
    store.set(f"joined/{rank}", "")
    try:
        store.wait([f"joined/{other}" for other in range(size)], limit)
    except RuntimeError as error:
        missing = [str(other) for other in range(size) if not store.check([f"joined/{other}"])]
        raise RankError(
            f"rank {', '.join(missing)} of {size} did not join within {limit.total_seconds():g} s "
            "(run.rank_timeout_seconds): see its log"
        ) from error
    return store


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[SingleProcess]:
    """Yield the group of this process: the ranks that torchrun has started, or a single process.

    `timeout` is in seconds. Raises the errors of `DistributedGroup`.
    """
    group = DistributedGroup(device, timeout) if environment.is_distributed() else SingleProcess()
    try:
        yield group
    except BaseException:
        group.close(failed=True)
        raise
    group.close()


def device_of_rank(device: torch.device) -> torch.device:
    """Return the device of this rank: a GPU of its own if there are several ranks on GPUs, otherwise `device`.

    Raises BackendError if this machine has more ranks than GPUs.
    """
    if device.type != "cuda" or not environment.is_distributed():
        return device
    gpus, ranks = torch.cuda.device_count(), environment.local_world_size()
    if ranks > gpus:
        raise BackendError(f"this machine has {ranks} ranks and {gpus} GPUs: start at most {gpus} ranks on it")
    gpu = torch.device("cuda", environment.local_rank())
    torch.cuda.set_device(gpu)
    return gpu
