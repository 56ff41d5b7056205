"""Memory of this process, the system and a GPU, and the limits of a run. All in GiB, 2^30 bytes."""

import ctypes
import gc
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from pgat_fast.utils.system import GIB, container_memory_limit

logger = logging.getLogger("pgat_fast.monitoring")

NEAR = 0.9
"""Share of a limit at which a run warns."""
MEMORY_LIMIT, DEVICE_MEMORY_LIMIT = "run.memory_limit_gb", "run.device_memory_limit_gb"
"""The settings that hold the limits."""

_ADVICE = (
    "lower training.batch_size (and raise training.gradient_accumulation_steps, for the same optimizer step) "
    "or model.seq_len, or raise the limit"
)


@dataclass(frozen=True, kw_only=True)
class MemoryReading:
    """Memory at one moment, in GiB; None if it cannot be read. A line of memory.jsonl holds these fields."""

    process_gib: float | None = None
    """Resident memory of this process."""
    process_peak_gib: float | None = None
    """Peak of the resident memory."""
    system_available_gib: float | None = None
    """Memory that the machine can still provide without swapping; ignores the limit of a container."""
    system_used_percent: float | None = None
    device_allocated_gib: float | None = None
    """GPU memory of tensors."""
    device_reserved_gib: float | None = None
    """GPU memory reserved by torch, including its cache."""
    device_peak_allocated_gib: float | None = None
    device_peak_reserved_gib: float | None = None
    device_total_gib: float | None = None
    device_percent: float | None = None
    """Percentage of the GPU's memory that all processes use."""
    allocation_retries: int | None = None
    """Number of times that torch emptied its cache to find memory."""
    out_of_memory_count: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name; those of a GPU only if there is one."""
        fields = asdict(self)
        if self.device_allocated_gib is not None:
            return fields
        return {name: value for name, value in fields.items() if name.startswith(("process", "system"))}


def read_memory(device: torch.device, *, baseline_gib: float = 0.0, system: bool = True) -> MemoryReading:
    """Read the memory of this process and, if it is a CUDA device, of `device`, without synchronizing it.

    A value that cannot be read is None; this raises no exception.

    Args:
        device: where the model computes.
        baseline_gib: an earlier peak of the process, which does not count. Until the process exceeds it,
            `process_peak_gib` is the current memory.
        system: also read values that `check_limits` does not need, at several times the cost.
    """
    import psutil

    fields: dict[str, Any] = {}
    try:
        current, peak = process_memory()
        fields |= {"process_gib": current, "process_peak_gib": peak if peak > baseline_gib else current}
        if system:
            machine = psutil.virtual_memory()
            fields |= {"system_available_gib": machine.available / GIB, "system_used_percent": machine.percent}
    except (OSError, psutil.Error) as error:
        logger.debug("the memory of the process cannot be read: %s", error)
    if device.type == "cuda":
        try:
            fields |= _device_fields(device, system)
        except (RuntimeError, AssertionError) as error:  # after an error of the device, or without a driver
            logger.debug("the memory of %s cannot be read: %s", device, error)
    return MemoryReading(**fields)


def process_memory() -> tuple[float, float]:
    """Return the resident memory of this process in GiB, current and peak. Raises OSError or psutil.Error.

    On Linux both come from /proc/self/status. `ru_maxrss` is unsuitable there: a process inherits the peak of its
    parent, so that a run started from a large notebook would seem as large.
    """
    if sys.platform == "linux":
        with open("/proc/self/status", "rb", buffering=0) as file:
            marks = re.findall(rb"^Vm(?:HWM|RSS):\s*(\d+) kB", file.read(), re.MULTILINE)
        if len(marks) == 2:
            peak, current = (int(mark) * 1024 / GIB for mark in marks)
            return current, max(current, peak)
    import psutil

    info = psutil.Process().memory_info()
    if sys.platform == "win32":
        peak = info.peak_wset
    else:
        import resource  # not available on Windows

        in_bytes = sys.platform == "darwin"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if in_bytes else 1024)
    return info.rss / GIB, max(info.rss, peak) / GIB


def free_memory(limit_gb: float | None = None) -> int:
    """Return the bytes that this process can still allocate on the machine, in its container and below `limit_gb`.

    `limit_gb` is `run.memory_limit_gb`, in GiB of the process.
    """
    import psutil

    current = process_memory()[0]
    free = psutil.virtual_memory().available / GIB
    container = container_memory_limit()
    for limit in (limit_gb, None if container is None else container / GIB):
        if limit is not None:
            free = min(free, limit - current)
    return max(0, int(free * GIB))


def _device_fields(device: torch.device, system: bool) -> dict[str, Any]:
    """Return the counters of torch's allocator, kept on the host, and with `system` the driver's for the whole GPU."""
    stats = torch.cuda.memory_stats_as_nested_dict(device)

    def gib(name: str, moment: str) -> float:
        amount: int = stats.get(name, {}).get("all", {}).get(moment, 0)
        return amount / GIB

    fields: dict[str, Any] = {
        "device_allocated_gib": gib("allocated_bytes", "current"),
        "device_reserved_gib": gib("reserved_bytes", "current"),
        "device_peak_allocated_gib": gib("allocated_bytes", "peak"),
        "device_peak_reserved_gib": gib("reserved_bytes", "peak"),
        "allocation_retries": stats.get("num_alloc_retries", 0),
        "out_of_memory_count": stats.get("num_ooms", 0),
    }
    if system:
        try:
            free, total = torch.cuda.mem_get_info(device)
        except RuntimeError as error:
            logger.debug("the used memory of %s cannot be read: %s", device, error)
        else:
            fields |= {"device_total_gib": total / GIB, "device_percent": 100 * (total - free) / total}
    return fields


LimitLevel = Literal["ok", "near", "over"]
_LIMIT_LEVELS: tuple[LimitLevel, ...] = ("ok", "near", "over")


@dataclass(frozen=True)
class LimitState:
    """State of the memory limits of a run."""

    levels: Mapping[str, LimitLevel] = field(default_factory=dict)
    """Level by setting, for the limits that are set and can be read."""
    message: str = ""
    """One sentence for every limit that is near or over."""

    @property
    def level(self) -> LimitLevel:
        """The worst of `levels`: `near` from 90 % of a limit on, `over` from 100 %; `ok` if no limit is set."""
        return max(self.levels.values(), key=_LIMIT_LEVELS.index, default="ok")

    @property
    def over(self) -> bool:
        """Whether a limit is reached in full."""
        return self.level == "over"


def check_limits(reading: MemoryReading, limits: Mapping[str, float]) -> LimitState:
    """Compare the peaks of `reading` with `limits`, GiB by the settings `MEMORY_LIMIT` and `DEVICE_MEMORY_LIMIT`.

    Peaks are compared because a step frees most of its memory before it ends. A peak that could not be read is skipped.
    """
    peaks = {
        MEMORY_LIMIT: ("process", reading.process_peak_gib),
        DEVICE_MEMORY_LIMIT: ("device", reading.device_peak_allocated_gib),
    }
    levels: dict[str, LimitLevel] = {}
    sentences = []
    for setting, limit in limits.items():
        owner, peak = peaks[setting]
        if peak is None:
            continue
        share = peak / limit
        levels[setting] = "over" if share >= 1 else "near" if share >= NEAR else "ok"
        if share >= NEAR:
            sentences.append(
                f"peak {owner} memory is {peak:.3f} GiB, {100 * share:.1f} % of {setting} ({limit:g} GiB): {_ADVICE}"
            )
    return LimitState(levels, "; ".join(sentences))


def release_caches() -> None:
    """Release unused memory: Python's reference cycles, torch's cached GPU memory, free pages of the C library."""
    gc.collect()
    if torch.cuda.is_initialized():
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # after an error of the device every call fails
            logger.warning("the cached GPU memory cannot be released: %s", error)
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # only glibc has it; Windows has no library None
        logger.debug("this C library has no malloc_trim")
