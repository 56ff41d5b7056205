"""Launching of kernels with a configuration from the table, on a GPU or in triton's interpreter."""

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from pgat_kernels.dispatch import gpu_of
from pgat_kernels.instrumentation import Launch, architecture_of_launches, executor, note_compiled
from pgat_kernels.launch_configs import configuration
from pgat_kernels.ops.dropout import first_kept_code, keep_scale, site_offset
from pgat_kernels.ops.dropout_masks import Masks
from pgat_kernels.ops.graph_inputs import GraphInputs
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


def choose(kernel: str, x: Tensor, size: int) -> Configuration:
    """Return the configuration of `kernel` for the dtype and device of `x` and this size."""
    return configuration(kernel, x.dtype.itemsize, size, architecture_of_launches() or gpu_of(x.device))


def tiles_of(count: int, configuration: Configuration) -> int:
    """Return the number of tiles that hold `count` rows."""
    return int(triton.cdiv(count, configuration.block))


def launch(
    kernel: Any, programs: int, tensors: tuple[Tensor, ...], configuration: Configuration, flops: int, **named: Any
) -> None:
    """Run `kernel` on the device of its tensors, in a one-dimensional grid; do nothing if `programs` is 0.

    `flops` are those of its products, for recorded launches.
    """
    execute = executor()
    if execute is not None:
        execute(Launch(kernel, programs, tensors, named, configuration, flops))
        return
    if programs == 0:
        return
    block, warps, stages, _ = configuration
    device = tensors[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        compiled = kernel[(programs,)](*tensors, **named, BLOCK=block, num_warps=warps, num_stages=stages)
    note_compiled(kernel, compiled)


def graph_arguments(inputs: GraphInputs) -> dict[str, object]:
    """Return the arguments that the kernels of graph attention share, by name."""
    graphs, heads, nodes, depth = inputs.q.shape
    return {
        "graphs": graphs,
        "scale": inputs.scale,
        "threshold": inputs.threshold,
        "HEADS": heads,
        "NODES": nodes,
        "DEPTH": depth,
        "BLOCK_DEPTH": rounded(depth),
        "MASKED": inputs.adjacency is not None,
        "BIASED": inputs.bias is not None,
        "PRECISION": product_precision(inputs.q.dtype),
        **dropout_arguments(inputs.dropout.rate, inputs.dropout.site),
    }


def graph_tensors(inputs: GraphInputs) -> tuple[Tensor, ...]:
    """Return the tensors that the kernels of graph attention read, in the order of their arguments."""
    seed = inputs.dropout.seed
    optional = (pointer_or(x, seed) for x in (inputs.adjacency, inputs.bias))
    return inputs.q, inputs.k, inputs.v, *optional, seed, inputs.dropout.first_row


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
        kernel, tiles_of(count, configuration), tensors, configuration, products * 2 * count * weight.numel(),
        rows=count, TOKENS=x.shape[-2], **named, **dropout_arguments(masks.rate, site, sites),
    )  # fmt: skip


def dropout_arguments(rate: float, site: int, sites: int = 1) -> dict[str, object]:
    """Return the arguments of kernels with dropout at `site` and, if `sites` is 2, the next site."""
    arguments: dict[str, object] = {
        "site_offset": site_offset(site),
        "dropped": first_kept_code(rate),
        "kept_scale": keep_scale(rate),
        "DROPOUT": rate > 0,
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
