"""Text tables for a terminal."""

from collections.abc import Sequence


def format_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return one line per row with aligned columns, two spaces apart. All rows must have the same length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)
