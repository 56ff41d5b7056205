"""Combinations of parameters for tests: not all of them, but every two values together."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product
from typing import Any

import pytest

Row = tuple[Any, ...]
Part = frozenset[tuple[int, Any]]
"""Some values of a row, each with its place in it."""


def parts(row: Row, size: int) -> set[Part]:
    """All choices of `size` values of a row."""
    return {frozenset(chosen) for chosen in combinations(enumerate(row), size)}


def covering(rows: Sequence[Row], size: int) -> list[Row]:
    """Few of `rows`, in which any `size` values that occur together do so again; always the same ones."""
    left = set[Part]().union(*(parts(row, size) for row in rows))
    taken, times = list[Row](), Counter[Part]()

    def gain(row: Row) -> tuple[int, int]:
        """What it adds; and of those that add as much, one whose values are rare so far."""
        return len(left & parts(row, size)), -sum(times[part] for part in parts(row, 1))

    while left:
        taken.append(max(rows, key=gain))
        left -= parts(taken[-1], size)
        times.update(parts(taken[-1], 1))
    return taken


def pairwise(*values: Iterable[Any]) -> list[Row]:
    """Rows of one value of each, in which any two values occur together. Values must be hashable."""
    return covering(list(product(*values)), 2)


def pairwise_each_value_first(*values: Iterable[Any], slow: Callable[[Row], bool] = lambda row: False) -> list[Any]:
    """`pairwise` as parameters of a test, marked as slow but for some rows in which every value occurs.

    Rows that are `slow` are so in any case.
    """
    rows = pairwise(*values)
    first = set(covering([row for row in rows if not slow(row)], 1))
    return [pytest.param(*row, marks=() if row in first else pytest.mark.slow) for row in rows]
