"""Coverage of the forecast intervals on the test windows, as `results.json` tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Coverage:
    """One level of the intervals, all days and targets together; None where the level could not be calibrated."""

    nominal: float
    covered: float | None
    """Share of truths inside."""
    mean_width: float | None
    by_target: Mapping[str, float | None]
    by_horizon: list[float | None]


def coverages(intervals: Mapping[str, Any] | None) -> dict[str, list[Coverage]]:
    """`scaled` and `price` -> the levels, lowest first, of `test.intervals`.

    Empty where there is nothing, or where it is told in another form than this one knows.
    """
    intervals = intervals or {}
    try:
        found = {name: [_coverage(level) for level in intervals.get(name) or []] for name in ("scaled", "price")}
    except (KeyError, TypeError):
        return {}
    return {name: sorted(levels, key=lambda level: level.nominal) for name, levels in found.items()}


def _coverage(level: Mapping[str, Any]) -> Coverage:
    coverage = level["coverage"]
    return Coverage(
        level["nominal"], coverage["overall"], level["mean_width"], coverage["by_target"], coverage["by_horizon"]
    )
