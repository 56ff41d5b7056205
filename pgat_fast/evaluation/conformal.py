"""Split conformal intervals, with widths from the errors on windows not used for training (Vovk, Gammerman & Shafer,
Algorithmic Learning in a Random World, 2005; Lei et al., Distribution-free predictive inference, 2018).

The coverage guarantee assumes exchangeable windows. The validation windows overlap, come from a single period, and were
used to select the weights. Coverage is therefore measured on the test windows and not guaranteed.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def half_widths(errors: Array, levels: Sequence[float]) -> tuple[Array | None, ...]:
    """Return, for each of `levels`, half the interval width of each day and target, [P, C]; None if it is infinite.

    The half width is the absolute error of rank ceil((W + 1) * level) among the W windows of `errors` [W, P, C]. If the
    rank exceeds W, no finite interval has the level (95 % needs 19 windows). Non-finite errors rank last and may
    leave no finite interval either.
    """
    count = len(errors)
    ordered = np.sort(np.abs(errors), axis=0)  # NaN sorts last
    indices = [rank(count, level) - 1 for level in levels]
    return tuple(ordered[index] if index < count and np.isfinite(ordered[index]).all() else None for index in indices)


def rank(count: int, level: float) -> int:
    """Return ceil((count + 1) * level), without rounding a product such as 20 * 0.95 up to 20."""
    return math.ceil((count + 1) * level - 1e-9)


def windows_needed(level: float) -> int:
    """Return the smallest number of windows W with ceil((W + 1) * level) <= W."""
    return math.ceil(level / (1 - level) - 1e-9)
