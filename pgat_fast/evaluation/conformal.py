"""Split conformal intervals: as wide as the errors on windows that were not trained on (Vovk, Gammerman & Shafer,
Algorithmic Learning in a Random World, 2005; Lei et al., Distribution-free predictive inference, 2018).

The promise of these intervals holds for exchangeable windows. Ours overlap, come from one stretch of time, and the
weights were chosen on them; so what they cover is measured on the test windows and not promised.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def half_widths(errors: Array, levels: Sequence[float]) -> tuple[Array | None, ...]:
    """For each of `levels` half the width of the interval of each day and target, [P, C]; None where it is infinite.

    The width is the absolute error of rank ceil((W + 1) * level) among the W windows of `errors` [W, P, C]: with fewer
    windows than that no finite interval has the level (95 % needs 19 windows), and with errors that are not finite
    none may have.
    """
    count = len(errors)
    ordered = np.sort(np.abs(errors), axis=0)  # NaN comes last
    places = [rank(count, level) - 1 for level in levels]
    return tuple(ordered[place] if place < count and np.isfinite(ordered[place]).all() else None for place in places)


def rank(count: int, level: float) -> int:
    """ceil((count + 1) * level), where a product like 20 * 0.95 is not taken for more than 19."""
    return math.ceil((count + 1) * level - 1e-9)


def windows_needed(level: float) -> int:
    """The fewest windows W with ceil((W + 1) * level) <= W."""
    return math.ceil(level / (1 - level) - 1e-9)
