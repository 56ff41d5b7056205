"""Coverage of the forecast intervals on the test windows, read from `results.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Coverage:
    """Hold the coverage of one level over all days and targets; None where the level could not be calibrated."""

    nominal: float
    covered: float | None
    """Share of the true values inside the intervals."""
    mean_width: float | None
    by_target: Mapping[str, float | None]
    by_horizon: list[float | None]


def read_coverage(intervals: Mapping[str, Any] | None) -> dict[str, list[Coverage]]:
    """Return the levels of `test.intervals` in ascending order, by unit (`scaled`, `price`).

    Empty without intervals, and for intervals in an unknown format.
    """
    intervals = intervals or {}
    try:
        levels = {name: [_parse_level(level) for level in intervals.get(name) or []] for name in ("scaled", "price")}
    except (KeyError, TypeError):
        return {}
    return {name: sorted(by_unit, key=lambda level: level.nominal) for name, by_unit in levels.items()}


def _parse_level(level: Mapping[str, Any]) -> Coverage:
    coverage = level["coverage"]
    return Coverage(
        level["nominal"], coverage["overall"], level["mean_width"], coverage["by_target"], coverage["by_horizon"]
    )
