"""Choice between Triton kernels and plain torch for each operator."""

import logging
from collections.abc import Iterable
from enum import IntEnum
from functools import cache
from os import environ
from typing import Final, NamedTuple

import torch
from torch import Tensor

from pgat_kernels.instrumentation import executor
from pgat_kernels.torch_features import constant_when_compiled
from pgat_kernels.tuning_table import applying, fitting

logger = logging.getLogger(__name__)

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Kernels(IntEnum):
    """Set of operators that use kernels, on devices where kernels run."""

    OFF = 0
    ON = 1
    """All operators."""
    LISTED = 2
    """Operators whose kernels `tuning_table` lists as faster than plain torch on this GPU, for as many rows."""


class Coverage(NamedTuple):
    """Inputs that the kernels of an operator support; other inputs are computed in plain torch."""

    operator: str
    takes: str | None
    """Readable description; None if there is no kernel yet."""


COVERAGE: Final = (
    Coverage("graph_attention", "up to 64 nodes whole, up to 512 by tiles; head dimension up to 64"),
    Coverage("gru_bank", "the loops along time: float32, up to 128 states"),
    Coverage("attention", None),
    Coverage("low_rank_attention", "as graph_attention and projection_block"),
    Coverage("projection_block", "up to 256 columns"),
    Coverage("feed_forward_block", "rows of up to 256 columns, any hidden layer"),
    Coverage("edge_tokens", "up to 256 columns, any second layer"),
    Coverage("edge_head", "up to 256 columns"),
    Coverage("aspects", "float32, up to 128 pairs (16 bodies)"),
    Coverage("query_attention", None),
)
"""Operators of the performance-critical model parts."""


@cache
def _triton_is_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


def interpreted() -> bool:
    """Return whether triton interprets kernels on CPU tensors: `TRITON_INTERPRET=1` in the environment.

    The variable is parsed as in triton, which is not imported for this: it takes 70 MB.
    """
    return environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def why_no_kernels(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Return the reason why kernels cannot take tensors of `dtype` on `device`, as readable text; None if they can."""
    if not _triton_is_installed():
        return "triton is not installed (it is made for Linux only)"
    if not (executor() or device.type == "cuda" or (device.type == "cpu" and interpreted())):
        return f"Triton kernels run on GPUs, not on {device.type}"
    if dtype not in _KERNEL_DTYPES:
        return f"kernels support float32, bfloat16 and float16, not {dtype}"
    return None


@cache
def gpu_of(device: torch.device) -> str:
    """Return the GPU architecture as named in the tables: `sm_90`, `gfx942`; `default` for other devices."""
    if device.type != "cuda":
        return "default"
    properties = torch.cuda.get_device_properties(device)
    return properties.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"


def wanted(kernels: int, operator: str, x: Tensor, size: int, dtype: torch.dtype | None = None) -> bool:
    """Return whether a kernel should compute `operator`; decided once per compilation.

    Args:
        kernels: one of `Kernels`.
        operator: as in `COVERAGE`.
        x: input rows, [..., columns].
        size: by which the tables distinguish cases, see `pgat_kernels.tuning_table.Case`.
        dtype: of the products; that of `x` by default.
    """
    if kernels != Kernels.LISTED:
        return bool(kernels)
    rows, itemsize = x.numel() // x.shape[-1], (dtype or x.dtype).itemsize
    pays: bool = _pays(operator, x.device.type, x.device.index or 0, itemsize, size, rows)
    return pays


@constant_when_compiled  # reads a file and queries the driver
def _pays(operator: str, device_type: str, index: int, itemsize: int, size: int, rows: int) -> bool:
    gpu = gpu_of(torch.device(device_type, index))
    entry = applying(gpu)
    case = None if entry is None else fitting(entry.thresholds, operator, itemsize, size)
    if entry is None or case is None:
        reason = f"nothing is known of its kernels on {gpu} at {8 * itemsize} bits and this size"
    else:
        min_rows, source = entry.thresholds[case]
        if min_rows is not None and rows >= min_rows:
            return True
        faster = f"faster only from {min_rows} rows on" if min_rows else "not faster"
        reason = f"its kernels are {faster} ({source} for {entry.device})"
    _log_once(operator, reason)
    return False


def listed_rows(operator: str, gpu: str) -> str:
    """Describe from how many rows on `auto` uses kernels for `operator` on this architecture."""
    entry = applying(gpu)
    lines = {} if entry is None else {case: line for case, line in entry.thresholds.items() if case.kernel == operator}
    if not lines:
        return f"plain torch: nothing is known on {gpu}"
    return "; ".join(
        f"{8 * case.itemsize} bits, up to {case.most}: "
        + ("plain torch" if rows is None else f"kernel from {rows} rows on")
        + f" ({source})"
        for case, (rows, source) in lines.items()
    )


def use_kernel(operator: str, device: torch.device, dtypes: Iterable[torch.dtype], fits: bool) -> bool:
    """Return whether the requested kernels of `operator` can compute it; if not, log the reason once.

    Args:
        operator: as in `COVERAGE`.
        device: of the inputs.
        dtypes: of the inputs.
        fits: whether kernels support the sizes, see `COVERAGE`.
    """
    reasons = [reason for dtype in dtypes if (reason := why_no_kernels(device, dtype)) is not None]
    if not reasons and not fits:
        (entry,) = (line for line in COVERAGE if line.operator == operator)
        reasons = [f"its kernels support {entry.takes}"]
    if reasons:
        _log_once(operator, reasons[0])
    return not reasons


@cache
def _log_once(operator: str, reason: str) -> None:
    logger.info("%s is computed in plain torch: %s", operator, reason)


def kernels_run_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether kernels can take tensors of `dtype` on `device`."""
    return why_no_kernels(device, dtype) is None
