"""Which operators are computed by Triton kernels here, and why others are not."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from os import environ
from typing import Final, NamedTuple

import torch

logger = logging.getLogger(__name__)

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Coverage(NamedTuple):
    """What the kernels of an operator take; what they do not take is computed in plain torch."""

    operator: str
    takes: str | None
    """In words; None: there is no kernel yet."""


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
"""Operators of the model's hot parts."""


@cache
def _triton_is_installed() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None


def interpreted() -> bool:
    """Whether triton interprets kernels, on tensors of the CPU: `TRITON_INTERPRET=1` in the environment.

    Read as triton reads it, which is not imported for the question: it takes 70 MB.
    """
    return environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


_recording = False


@contextmanager
def kernels_without_data() -> Iterator[None]:
    """Within it tensors of any device are given to kernels, whose launches somebody records."""
    global _recording
    before, _recording = _recording, True
    try:
        yield
    finally:
        _recording = before


def why_no_kernels(device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why tensors on `device` of `dtype` are not given to kernels, in words; None where they are."""
    if not _triton_is_installed():
        return "triton is not installed (it is made for Linux only)"
    if not (_recording or device.type == "cuda" or (device.type == "cpu" and interpreted())):
        return f"Triton kernels run on GPUs, not on {device.type}"
    if dtype not in _KERNEL_DTYPES:
        return f"kernels take float32, bfloat16 and float16, not {dtype}"
    return None


_said: set[tuple[str, str]] = set()


def use_kernel(operator: str, device: torch.device, dtypes: Iterable[torch.dtype], fits: bool) -> bool:
    """Whether `operator`, which was asked for kernels, has its kernels compute it; if not, the log says why, once.

    `fits`: whether the sizes are such that kernels take them, see `COVERAGE`.
    """
    reasons = [reason for dtype in dtypes if (reason := why_no_kernels(device, dtype)) is not None]
    if not reasons and not fits:
        (own,) = (line for line in COVERAGE if line.operator == operator)
        reasons = [f"its kernels take {own.takes}"]
    if reasons and (operator, reasons[0]) not in _said:
        _said.add((operator, reasons[0]))
        logger.info("%s is computed in plain torch: %s", operator, reasons[0])
    return not reasons


def kernels_run_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether tensors on `device` of `dtype` are given to kernels."""
    return why_no_kernels(device, dtype) is None
