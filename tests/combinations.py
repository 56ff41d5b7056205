"""Pairwise combinations of test parameters: any two values occur together in at least one row."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Row = tuple[Any, ...]
Part = frozenset[tuple[int, Any]]
"""Some values of a row, each with its position."""


def parts(row: Row, size: int) -> set[Part]:
    """Return all choices of `size` values of a row."""
    return {frozenset(chosen) for chosen in combinations(enumerate(row), size)}


def covering(rows: Sequence[Row], size: int) -> list[Row]:
    """Select few of `rows` that contain every combination of `size` values in them. The result is deterministic."""
    uncovered = set[Part]().union(*(parts(row, size) for row in rows))
    selected, counts = list[Row](), Counter[Part]()

    def gain(row: Row) -> tuple[int, int]:
        """Return the number of new combinations and, to break ties, how rare the values of the row are so far."""
        return len(uncovered & parts(row, size)), -sum(counts[part] for part in parts(row, 1))

    while uncovered:
        selected.append(max(rows, key=gain))
        uncovered -= parts(selected[-1], size)
        counts.update(parts(selected[-1], 1))
    return selected


def pairwise(*values: Iterable[Any]) -> list[Row]:
    """Return rows with one value of each argument, in which any two values occur together. Values must be hashable."""
    return covering(list(product(*values)), 2)


def pairwise_each_value_first(*values: Iterable[Any], slow: Callable[[Row], bool] = lambda row: False) -> list[Any]:
    """Return `pairwise` as test parameters, all marked slow except a few rows that contain every value.

    Rows for which `slow` is true are always marked slow.
    """
    rows = pairwise(*values)
    fast_rows = set(covering([row for row in rows if not slow(row)], 1))
    return [pytest.param(*row, marks=() if row in fast_rows else pytest.mark.slow) for row in rows]
