"""How kernels are launched: with a configuration from the table, on a GPU, or in triton's interpreter."""

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
    """`tl.dot`'s: float32 products are IEEE, as torch's are unless TF32 is allowed; those of 16 bits have one way."""
    allowed = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


def pointer_or(x: Tensor | None, other: Tensor) -> Tensor:
    """`x`, or a tensor in its place where the kernel does not look at it."""
    return other if x is None else x


class Launch(NamedTuple):
    """What is needed to compile a kernel, or to count what it does."""

    kernel: Any
    programs: int
    tensors: tuple[Tensor, ...]
    """Its first arguments."""
    named: dict[str, Any]
    """The others."""
    configuration: Configuration
    flops: int
    """Of its products, recomputation included, padding not."""


_instead: Callable[[Launch], None] | None = None
_gpu: str | None = None


@contextlib.contextmanager
def intercept_launches(execute: Callable[[Launch], None]) -> Iterator[None]:
    """Within it kernels, of tensors on any device, do not run: every launch is given to `execute`."""
    global _instead
    before, _instead = _instead, execute
    try:
        with kernels_without_data():
            yield
    finally:
        _instead = before


@contextlib.contextmanager
def record_launches(gpu: str = DEFAULT) -> Iterator[list[Launch]]:
    """Within it kernels do not run: what would be launched on `gpu` is added to the list.

    Tensors may be on the meta device.
    """
    global _gpu
    before, _gpu = _gpu, gpu
    found: list[Launch] = []
    try:
        with intercept_launches(found.append):
            yield found
    finally:
        _gpu = before


_ran: list[tuple[Any, Any]] | None = None


@contextlib.contextmanager
def running() -> Iterator[list[tuple[Any, Any]]]:
    """Within it, every kernel that runs is added to the list, with what triton compiled; None where it interprets."""
    global _ran
    before, _ran = _ran, []
    try:
        yield _ran
    finally:
        _ran = before


def choose(kernel: str, x: Tensor, size: int) -> Configuration:
    """The configuration of `kernel` for inputs such as `x`."""
    return configuration(kernel, x.dtype.itemsize, size, _gpu or gpu_of(x.device))


def launch(
    kernel: Any, programs: int, tensors: tuple[Tensor, ...], configuration: Configuration, flops: int, **named: Any
) -> None:
    """Run `kernel` on the device of its tensors, in a grid of one dimension; nothing where there is no program.

    `flops`: those of its products, which are counted where launches are recorded.
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
    """The arguments that forward and backward kernel share, by name."""
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
    """Run a kernel whose programs own a tile of the rows of `x` [..., T, columns] each, with dropout at `sites` sites.

    `products`: how many of these rows with `weight`, or of that size, it takes.
    """
    count = x.numel() // x.shape[-1]
    launch(
        kernel, -(-count // configuration.block), tensors, configuration, products * 2 * count * weight.numel(),
        rows=count, TOKENS=x.shape[-2], **named, **dropout_arguments(masks, site, sites),
    )  # fmt: skip


def dropout_arguments(masks: Masks, site: int, sites: int) -> dict[str, object]:
    """Those of kernels that drop out at `site` and, with `sites` 2, the next."""
    found: dict[str, object] = {
        "site_offset": site_offset(site),
        "dropped": first_kept_code(masks.rate),
        "kept_scale": masks.scale,
        "DROPOUT": masks.rate > 0,
    }
    return found | ({"second_site_offset": site_offset(site + 1)} if sites == 2 else {})


CHUNK = 16
"""Columns at a time of float32 products."""


def chunk_of(dtype: torch.dtype) -> int:
    """Columns at a time of products in `dtype`, 0 for all: see `tiles`."""
    return CHUNK if dtype.itemsize == 4 else 0


def width_arguments(width: int, dtype: torch.dtype) -> dict[str, object]:
    """Those of kernels over rows of `width` columns whose products are in `dtype`."""
    return {
        "WIDTH": width,
        "BLOCK_WIDTH": rounded(width),
        "PRECISION": product_precision(dtype),
    }


def rounded(size: int) -> int:
    """The power of two, at least 16, that a tile of this many columns takes."""
    return max(16, int(triton.next_power_of_2(size)))


def strides_of(**tensors: Tensor) -> dict[str, int]:
    """Those of [G, H, T, d] tensors, under the names that kernels have for them."""
    found = {}
    for name, x in tensors.items():
        for of, stride in zip(("GRAPH", "HEAD", "NODE"), x.stride(), strict=False):
            found[f"{name.upper()}_{of}"] = stride
    return found
