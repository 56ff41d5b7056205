"""The tables `forecasts.csv` and `adjacency.csv` of a run, with every cell checked."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from pgat_fast.errors import DataError

_KEYS = ("origin", "date", "horizon", "target")


def read_forecasts(path: Path) -> pd.DataFrame | None:
    """Read `forecasts.csv`: a row for each window, forecast day and target. Empty cells are NaN.

    Returns None for a missing file. Raises DataError, which names the problem, for a damaged one.
    """
    table = _read_cells(path)
    if table is None:
        return None
    if missing_columns := [name for name in (*_KEYS, "forecast", "truth") if name not in table]:
        raise DataError(f"{path}: column {missing_columns[0]} is missing; restore the file, or delete it")
    if table.empty:
        raise DataError(f"{path}: no rows; restore the file, or delete it")
    table["date"] = _parse_dates(path, table["date"])
    for name in table.columns.difference(["origin", "date", "target"]):
        table[name] = _parse_numbers(path, table[name])
    horizon = table["horizon"]
    if not bool((np.isfinite(horizon) & (horizon >= 1) & (horizon < 1e6) & (horizon % 1 == 0)).all()):
        raise DataError(f"{path}: column horizon: expected integers from 1; restore the file")
    return table.astype({"horizon": int})


def read_adjacency(path: Path) -> pd.DataFrame | None:
    """Read `adjacency.csv`: the mean adjacency [N, N], the row's node receives from the column's node.

    Returns None for a missing file. Raises DataError for a damaged one.
    """
    table = _read_cells(path)
    if table is None:
        return None
    table = table.set_index(table.columns[0])
    if list(table.index) != list(table.columns) or table.empty:
        raise DataError(f"{path}: the names of rows and columns differ; restore the file, or delete it")
    return table.apply(lambda column: _parse_numbers(path, column))


def read_text(path: Path) -> str | None:
    """Return the text of `path`; None for a missing file. Raises DataError."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: damaged: byte {error.start} is not UTF-8 text; restore the file") from error


def _read_cells(path: Path) -> pd.DataFrame | None:
    """Read a CSV file as strings. pandas would accept rows with missing or additional cells."""
    text = read_text(path)
    if text is None:
        return None
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: not CSV: {error}; restore the file, or delete it") from error
    if not rows:
        raise DataError(f"{path}: empty; restore the file, or delete it")
    header, *body = rows
    if len(set(header)) != len(header):
        raise DataError(f"{path}: line 1: duplicate column name; restore the file, or delete it")
    for line, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}: line {line}: {len(row)} cells, expected {len(header)}; restore the file")
    return pd.DataFrame(body, columns=header, dtype=object)


def _parse_numbers(path: Path, cells: "pd.Series[str]") -> "pd.Series[float]":
    try:
        return cells.replace("", "nan").astype(float)
    except ValueError as error:
        raise DataError(f"{path}: column {cells.name}: {error}; restore the file, or delete it") from error


def _parse_dates(path: Path, cells: "pd.Series[str]") -> "pd.Series[pd.Timestamp]":
    try:
        dates = pd.to_datetime(cells, format="%Y-%m-%d")
    except ValueError as error:
        raise DataError(f"{path}: column date: {error}; restore the file, or delete it") from error
    if dates.isna().any():
        raise DataError(f"{path}: column date: a cell is empty; restore the file, or delete it")
    return dates
