"""Training without dropout and in float64, in which a difference between two runs means a fault.

from typing import Any

Float32 is not precise enough. Rounding depends on the number of ranks, and the model divides by sums near zero: within
20 steps, a difference of 1e-7 in a gradient becomes one of 1e-2 in a weight.
"""

from typing import Any

from torch import nn

from pgat_fast.config import Config
from pgat_fast.data.windows import Batch, Windows
from pgat_fast.training import setup


def train_exactly() -> None:
    """Make all training in this process run in float64 and without dropout."""
    init, batch, build = nn.Dropout.__init__, Windows.batch, setup.build_model

    def without_dropout(self: nn.Dropout, p: float = 0.5, inplace: bool = False) -> None:
        init(self, 0.0, inplace)

    def in_float64(config: Config, **how: Any) -> nn.Module:
        return build(config, **how).double()

    nn.Dropout.__init__ = without_dropout
    Windows.batch = lambda self, indices: Batch(*(x.double() for x in batch(self, indices)))
    setup.build_model = in_float64
