"""Tables for a terminal."""

from collections.abc import Sequence


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """A line a row, cells of a column below each other, two spaces between columns; all rows of one length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)
