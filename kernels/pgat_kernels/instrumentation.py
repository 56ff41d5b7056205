"""Contexts for tests and measurements: which kernels are launched, in which configuration, with how many chunks.

The state that these contexts change is in this module and nowhere else. Outside of all contexts it is empty, and a
launch tests a few empty tuples.

Two kinds of state:

- Launches and configurations (`record_launches`, `intercept_launches`, `record_compiled`, `record_configurations`,
  `try_configuration`) apply to the whole process, because torch runs backward passes on a GPU in threads of its own,
  which see neither the thread-local nor the context variables of the caller. They may be entered and left in any
  order by several threads: each context removes its own entry. A launch by any thread reaches every open context of
  `record_compiled`, and only the latest of `intercept_launches` and `record_launches`.
- Chunks (`few_chunks`, `chunk_sizes_of`) apply to the current thread (or asyncio task) alone: memory is counted on
  tensors without data while another thread may be training.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Final, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pgat_kernels.torch_features import constant_when_compiled
from pgat_kernels.tuning_table import Case, Configuration

Value = TypeVar("Value")


class Launch(NamedTuple):
    """Arguments of a kernel launch, sufficient to compile the kernel or to count its operations."""

    kernel: Any
    programs: int
    tensors: tuple[Tensor, ...]
    """Leading positional arguments."""
    named: dict[str, Any]
    """Other arguments."""
    configuration: Configuration
    flops: int
    """FLOPs of the matrix products, including recomputation but not padding."""


class _Open(Generic[Value]):
    """Values of the contexts of one kind that are open in the process, in the order in which they were entered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: tuple[tuple[object, Value], ...] = ()  # replaced as a whole, so that reading needs no lock

    @contextmanager
    def entered(self, value: Value) -> Iterator[None]:
        """Add `value` for the duration of the context."""
        entry = (object(), value)
        with self._lock:
            self._entries = (*self._entries, entry)
        try:
            yield
        finally:
            with self._lock:
                self._entries = tuple(other for other in self._entries if other[0] is not entry[0])

    def values(self) -> list[Value]:
        return [value for _, value in self._entries]

    def latest(self) -> Value | None:
        entries = self._entries
        return entries[-1][1] if entries else None


_executors: Final = _Open[Callable[[Launch], None]]()
_architectures: Final = _Open[str]()
_compiled: Final = _Open[list[tuple[Any, Any]]]()
_trials: Final = _Open[tuple[Case, Configuration]]()
_requests: Final = _Open[list[Case]]()


# --- launches ---------------------------------------------------------------------------------------------------------


def intercept_launches(execute: Callable[[Launch], None]) -> AbstractContextManager[None]:
    """Pass every launch within the context to `execute` instead of running it, for tensors on any device."""
    return _executors.entered(execute)


@contextmanager
def record_launches(architecture: str = "default") -> Iterator[list[Launch]]:
    """Yield a list of the launches within the context, which are recorded instead of run.

    Tensors may be on any device, also on the meta device. Kernels have the configurations of `architecture`, such as
    `sm_90`.
    """
    launches: list[Launch] = []
    with _architectures.entered(architecture), intercept_launches(launches.append):
        yield launches


@contextmanager
def record_compiled() -> Iterator[list[tuple[Any, Any]]]:
    """Yield a list of the kernels that run within the context, each with its compiled form (None if interpreted)."""
    kernels: list[tuple[Any, Any]] = []
    with _compiled.entered(kernels):
        yield kernels


def executor() -> Callable[[Launch], None] | None:
    """Return the function that receives launches instead of the device; None if launches run."""
    return _executors.latest()


def architecture_of_launches() -> str | None:
    """Return the architecture whose configurations recorded launches have; None for that of the device."""
    return _architectures.latest()


def note_compiled(kernel: Any, compiled: Any) -> None:
    """Add a kernel that has been launched to the lists of `record_compiled`."""
    for kernels in _compiled.values():
        kernels.append((kernel, compiled))


# --- configurations ---------------------------------------------------------------------------------------------------


def try_configuration(case: Case, chosen: Configuration) -> AbstractContextManager[None]:
    """Use the configuration `chosen` for kernels of this case within the context, to measure it."""
    return _trials.entered((case, chosen))


@contextmanager
def record_configurations() -> Iterator[list[Case]]:
    """Yield a list to which every case is added whose configuration is looked up within the context."""
    cases: list[Case] = []
    with _requests.entered(cases):
        yield cases


def trial_of(case: Case) -> Configuration | None:
    """Note that the configuration of `case` is looked up, and return the one to try; None if there is none."""
    for cases in _requests.values():
        cases.append(case)
    return dict(_trials.values()).get(case)


# --- chunks -----------------------------------------------------------------------------------------------------------

_few: Final = ContextVar("few_chunks", default=False)
_device_type: Final = ContextVar[str | None]("chunk_sizes_of", default=None)


@contextmanager
def _set_to(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def few_chunks() -> AbstractContextManager[None]:
    """Compute only the first two of equal chunks within the context, to count memory on tensors without data.

    Two chunks are needed because the results of one are still allocated while the next is computed. Recurrences also
    take only two steps.
    """
    return _set_to(_few, True)


def chunk_sizes_of(device_type: str) -> AbstractContextManager[None]:
    """Use the chunk sizes of this type of device within the context, such as `cuda`, to count its memory elsewhere."""
    return _set_to(_device_type, device_type)


def has_few_chunks() -> bool:
    """Return whether only a few chunks are computed here, see `few_chunks`."""
    return _few.get()


def chunk_device_type(device: torch.device) -> str:
    """Return the type of device whose chunk sizes apply to tensors on `device`, see `chunk_sizes_of`."""
    return _chunk_device_type(device.type)


@constant_when_compiled
def _chunk_device_type(device_type: str) -> str:
    return _device_type.get() or device_type
