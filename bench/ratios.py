"""Ratios of speed, with prediction intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

NOISE: Final = 0.10
"""Largest relative width of an interval to either side; a ratio with a wider one is too noisy to report."""

HOURS: Final = 0.03
"""Relative difference between runs at different hours beyond that between their processes: 1.9 % between two on one
machine an hour apart (`comparison.json` and `comparison-2.json` in `bench/results/amd-epyc-zen4-2-cores/2026-11-26`,
`torch:compiled`), with some reserve."""

_STUDENT: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5 % quantiles of Student's t-distribution with 1, 2, ... degrees of freedom; the last is used for more."""


class Ratio(NamedTuple):
    """An estimate, and the interval that contains the estimate of another such run 19 times of 20."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the ratio that `record` was made from."""
        return cls(record["estimate"], record["low"], record["high"])

    @property
    def noisy(self) -> bool:
        """Whether the interval is too wide to report a number: see `NOISE`."""
        return not self.high / self.estimate - 1 <= NOISE

    def __str__(self) -> str:
        if self.noisy:
            return f"too noisy for a number: {self.low:.2g} to {self.high:.2g}"
        return f"{self.estimate:.2f} ({self.low:.2f} to {self.high:.2f})"

    def record(self) -> dict[str, Any]:
        return {**self._asdict(), "noisy": self.noisy}


def ratio(first: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio:
    """Return how many times less time `other` takes than `first`.

    Steps are taken in turns, so the k-th steps of both belong together: each pair of processes contributes the median
    of their ratios, from which disturbances of the machine cancel. Processes differ, too (placement of memory, cores
    assigned), and a later run has others: the interval is Student's prediction interval, of the logarithms, for the
    mean over as many other pairs of processes. It is wider than the 95 % confidence interval of the mean by a factor of
    the square root of 2. Effects common to all processes of an hour do not appear in their spread: `HOURS` is added for
    them.

    Args:
        first, other: seconds of the steps of each process, in the same order; at least two processes each.

    Raises ValueError for fewer processes, or if the numbers of processes or of steps differ.
    """
    if len(first) < 2 or len(first) != len(other):
        raise ValueError(f"{len(first)} and {len(other)} processes: two of each at least, and as many")
    logarithms = [
        statistics.median(math.log(a / b) for a, b in zip(first_steps, other_steps, strict=True))
        for first_steps, other_steps in zip(first, other, strict=True)
    ]
    mean, degrees = statistics.fmean(logarithms), len(logarithms) - 1
    quantile = _STUDENT[min(degrees, len(_STUDENT)) - 1]
    width = math.hypot(quantile * statistics.stdev(logarithms) * math.sqrt(2 / len(logarithms)), HOURS)
    return Ratio(math.exp(mean), math.exp(mean - width), math.exp(mean + width))
