"""A small valid data file as text cells that tests can corrupt."""

from pathlib import Path

import numpy as np

from pgat_fast.data.columns import COLUMNS
from pgat_fast.data.table import Problem, check_file

ROWS = 30
WINDOWS = {"seq_len": 8, "pred_len": 2, "validation_length": 3, "test_length": 4}
Rows = list[list[str]]


def good_rows() -> Rows:
    """Return the header and 30 days of a valid file as text cells."""
    random = np.random.default_rng(7)
    values = random.normal(size=(ROWS, len(COLUMNS))) * 0.01
    values[:, 1] = values[:, :4].max(axis=1)
    values[:, 2] = values[:, :4].min(axis=1)
    for column, name in enumerate(COLUMNS):
        if name.endswith("_sin"):
            angle = random.uniform(0, 2 * np.pi, ROWS)
            values[:, column] = np.sin(angle)
            values[:, COLUMNS.index(name.removesuffix("_sin") + "_cos")] = np.cos(angle)
    days = np.datetime64("2024-01-01") + np.arange(ROWS)
    return [
        ["date", *COLUMNS],
        *([str(day), *map(repr, row)] for day, row in zip(days, values.tolist(), strict=True)),
    ]


def write(path: Path, rows: Rows, end: str = "\n") -> Path:
    path.write_text("\n".join(",".join(row) for row in rows) + end, encoding="utf-8")
    return path


def check(path: Path) -> list[Problem]:
    return check_file(path, **WINDOWS)
