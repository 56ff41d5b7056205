"""Model of the minimum time of a launch: the longer of FLOPs / peak and bytes / bandwidth. Not a measurement.

It imports torch alone: `bench.gpu.measure` uses it on machines where nothing else is installed.
"""

import math
from typing import Any, Final, NamedTuple

from torch import Tensor


class Gpu(NamedTuple):
    """A GPU with its dense peak rates. Source: the makers' data sheets (SXM boards)."""

    name: str
    architecture: str
    flops_16: float
    """FLOPs per second of 16-bit products."""
    flops_32: float
    """FLOPs per second of IEEE float32 products."""
    bandwidth: float
    """Bytes per second."""


GPUS: Final = (
    Gpu("A100", "sm_80", 312e12, 19.5e12, 2.04e12),
    Gpu("H100", "sm_90", 989e12, 67e12, 3.35e12),
    Gpu("H200", "sm_90", 989e12, 67e12, 4.8e12),
    Gpu("B200", "sm_100", 2250e12, 75e12, 8e12),
)

LAUNCH_SECONDS: Final = 3e-6
"""Minimum seconds of an operation: about the gap between two kernels of one stream on a GPU."""

EPOCH_WINDOWS: Final = 6736
"""Training windows of the production data."""
EPOCH_STEPS: Final = 421
"""Steps of an epoch of the production data at a batch of 16."""


class Work(NamedTuple):
    """FLOPs and memory traffic of an operation."""

    name: str
    group: str
    """`kernel`, `product` (of torch) or `elementwise` (all other operations of torch)."""
    flops: int
    bytes: int
    wide: bool
    """Whether its products are in float32."""

    def seconds(self, gpu: Gpu) -> float:
        peak = gpu.flops_32 if self.wide else gpu.flops_16
        return max(self.flops / peak, self.bytes / gpu.bandwidth, LAUNCH_SECONDS)


def bytes_of(x: Tensor) -> int:
    """Return the bytes of a tensor in memory; an expanded dimension counts once."""
    return x.element_size() * math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


def work_of_launches(launches: list[Any]) -> list[Work]:
    """Return the work of recorded kernel launches."""
    return [
        Work(
            launch.kernel.__name__,
            "kernel",
            launch.flops,
            sum(bytes_of(x) for x in launch.tensors if x.dim()),
            all(x.dtype.itemsize >= 4 for x in launch.tensors),
        )
        for launch in launches
    ]
