"""Launching of kernels with a configuration from the table, on a GPU or in triton's interpreter."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from pgat_kernels.dispatch import gpu_of, kernels_without_data
from pgat_kernels.launch_configs import DEFAULT, configuration
from pgat_kernels.ops.chunked_ops import Masks
from pgat_kernels.ops.dropout import Dropout, first_kept_code, keep_scale, site_offset
from pgat_kernels.tuning_table import Configuration


def product_precision(dtype: torch.dtype) -> str:
    """Return the input precision of `tl.dot`: "tf32" for float32 if torch allows TF32, else "ieee".

    16-bit products have only one precision.
    """
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


def pointer_or(x: Tensor | None, other: Tensor) -> Tensor:
    """Return `x`, or `other` as a placeholder for an argument that the kernel does not read."""
    return other if x is None else x


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


_instead: Callable[[Launch], None] | None = None
_gpu: str | None = None


@contextlib.contextmanager
def intercept_launches(execute: Callable[[Launch], None]) -> Iterator[None]:
    """Pass every launch within the context to `execute` instead of running it, for tensors on any device."""
    global _instead
    before, _instead = _instead, execute
    try:
        with kernels_without_data():
            yield
    finally:
        _instead = before


@contextlib.contextmanager
def record_launches(gpu: str = DEFAULT) -> Iterator[list[Launch]]:
    """Yield a list of the launches for `gpu` within the context, which are recorded instead of run.

    Tensors may be on the meta device.
    """
    global _gpu
    before, _gpu = _gpu, gpu
    launches: list[Launch] = []
    try:
        with intercept_launches(launches.append):
            yield launches
    finally:
        _gpu = before


_ran: list[tuple[Any, Any]] | None = None


@contextlib.contextmanager
def running() -> Iterator[list[tuple[Any, Any]]]:
    """Yield a list of the kernels that run within the context, each with its compiled form (None if interpreted)."""
    global _ran
    before, _ran = _ran, []
    try:
        yield _ran
    finally:
        _ran = before


def choose(kernel: str, x: Tensor, size: int) -> Configuration:
    """Return the configuration of `kernel` for the dtype and device of `x` and this size."""
    return configuration(kernel, x.dtype.itemsize, size, _gpu or gpu_of(x.device))


def launch(
    kernel: Any, programs: int, tensors: tuple[Tensor, ...], configuration: Configuration, flops: int, **named: Any
) -> None:
    """Run `kernel` on the device of its tensors, in a one-dimensional grid; do nothing if `programs` is 0.

    `flops` are those of its products, for recorded launches.
    """
    if _instead is not None:
        _instead(Launch(kernel, programs, tensors, named, configuration, flops))
        return
    if programs == 0:
        return
    block, warps, stages, _ = configuration
    device = tensors[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        compiled = kernel[(programs,)](*tensors, **named, BLOCK=block, num_warps=warps, num_stages=stages)
    if _ran is not None:
        _ran.append((kernel, compiled))


def common_arguments(
    q: Tensor, adjacency: Tensor | None, bias: Tensor | None, dropout: Dropout, threshold: float, scale: float
) -> dict[str, object]:
    """Return the arguments that the forward and the backward kernels share, by name."""
    graphs, heads, nodes, depth = q.shape
    return {
        "graphs": graphs,
        "scale": scale,
        "threshold": threshold,
        "site_offset": site_offset(dropout.site),
        "dropped": first_kept_code(dropout.rate),
        "kept_scale": keep_scale(dropout.rate),
        "HEADS": heads,
        "NODES": nodes,
        "DEPTH": depth,
        "BLOCK_DEPTH": rounded(depth),
        "MASKED": adjacency is not None,
        "BIASED": bias is not None,
        "DROPOUT": dropout.rate > 0,
        "PRECISION": product_precision(q.dtype),
    }


def launch_over_rows(
    kernel: Any,
    tensors: tuple[Tensor, ...],
    configuration: Configuration,
    x: Tensor,
    weight: Tensor,
    masks: Masks,
    site: int,
    *,
    sites: int,
    products: int,
    **named: Any,
) -> None:
    """Run a kernel whose programs each own a tile of the rows of `x` [..., T, columns], with dropout at `sites` sites.

    `products` is the number of its products of these rows with `weight`, or of that size.
    """
    count = x.numel() // x.shape[-1]
    launch(
        kernel, -(-count // configuration.block), tensors, configuration, products * 2 * count * weight.numel(),
        rows=count, TOKENS=x.shape[-2], **named, **dropout_arguments(masks, site, sites),
    )  # fmt: skip


def dropout_arguments(masks: Masks, site: int, sites: int) -> dict[str, object]:
    """Return the arguments of kernels with dropout at `site` and, if `sites` is 2, the next site."""
    arguments: dict[str, object] = {
        "site_offset": site_offset(site),
        "dropped": first_kept_code(masks.rate),
        "kept_scale": masks.scale,
        "DROPOUT": masks.rate > 0,
    }
    return arguments | ({"second_site_offset": site_offset(site + 1)} if sites == 2 else {})


CHUNK = 16
"""Columns per step of float32 products."""


def chunk_of(dtype: torch.dtype) -> int:
    """Return the number of columns per step of products in `dtype`, 0 for all: see `tiles`."""
    return CHUNK if dtype.itemsize == 4 else 0


def width_arguments(width: int, dtype: torch.dtype) -> dict[str, object]:
    """Return the arguments of kernels over rows of `width` columns with products in `dtype`."""
    return {
        "WIDTH": width,
        "BLOCK_WIDTH": rounded(width),
        "PRECISION": product_precision(dtype),
    }


def rounded(size: int) -> int:
    """Return the padded number of columns of a tile: the next power of two, at least 16."""
    return max(16, int(triton.next_power_of_2(size)))


def strides_of(**tensors: Tensor) -> dict[str, int]:
    """Return the strides of [G, H, T, d] tensors by the names of the kernel arguments."""
    strides = {}
    for name, x in tensors.items():
        for axis, stride in zip(("GRAPH", "HEAD", "NODE"), x.stride(), strict=False):
            strides[f"{name.upper()}_{axis}"] = stride
    return strides
