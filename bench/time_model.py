"""What a launch takes at best: the longer of FLOPs / peak and bytes / bandwidth. A model, not a measurement.

It imports torch alone: `bench.gpu` wants it on machines where nothing else is installed.
"""

import math
from typing import Any, Final, NamedTuple

from torch import Tensor


class Gpu(NamedTuple):
    """Peak rates, dense. Source: the makers' data sheets (SXM boards)."""

    name: str
    architecture: str
    flops_16: float
    """Of 16-bit products a second."""
    flops_32: float
    """Of IEEE float32 products a second."""
    bandwidth: float
    """Bytes a second."""


GPUS: Final = (
    Gpu("A100", "sm_80", 312e12, 19.5e12, 2.04e12),
    Gpu("H100", "sm_90", 989e12, 67e12, 3.35e12),
    Gpu("H200", "sm_90", 989e12, 67e12, 4.8e12),
    Gpu("B200", "sm_100", 2250e12, 75e12, 8e12),
)

LAUNCH_SECONDS: Final = 3e-6
"""What an operation takes at least: about what a GPU needs between two kernels of one stream."""

EPOCH_WINDOWS: Final = 6736
"""What the production data has to train on."""
EPOCH_STEPS: Final = 421
"""Of the production data at a batch of 16."""


class Work(NamedTuple):
    """What an operation does."""

    name: str
    group: str
    """`kernel`, `product` (of torch) or `elementwise` (all else of torch)."""
    flops: int
    bytes: int
    wide: bool
    """Whether its products are of float32."""

    def seconds(self, gpu: Gpu) -> float:
        peak = gpu.flops_32 if self.wide else gpu.flops_16
        return max(self.flops / peak, self.bytes / gpu.bandwidth, LAUNCH_SECONDS)


def bytes_of(x: Tensor) -> int:
    """What there is of a tensor in memory: an expanded one counts once."""
    return x.element_size() * math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)


def work_of_launches(launches: list[Any]) -> list[Work]:
    """What recorded launches of kernels do."""
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
