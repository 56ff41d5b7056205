"""The tables `forecasts.csv` and `adjacency.csv` of a run, with every row checked."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgat_fast.errors import DataError

Array = NDArray[np.float64]
Dates = NDArray[np.datetime64]

_KEYS = ("origin", "date", "horizon", "target")


@dataclass(frozen=True, eq=False)
class Forecasts:
    """Hold the rows of `forecasts.csv`: one per window, forecast day and target."""

    dates: Dates
    """The forecast day, [rows]."""
    horizons: NDArray[np.int64]
    """Days ahead, from 1, [rows]."""
    targets: NDArray[np.str_]
    values: dict[str, Array]
    """The other columns by name, [rows]; NaN for empty cells."""

    @property
    def names(self) -> list[str]:
        """The targets, in the order of the file."""
        return list(dict.fromkeys(self.targets.tolist()))

    @property
    def last_horizon(self) -> int:
        return int(self.horizons.max())

    def has_prices(self, target: str) -> bool:
        """Return whether any forecast of `target` is given as a price."""
        return bool(np.isfinite(self._get_column("price_forecast")[self.targets == target]).any())

    def series(self, target: str, horizon: int) -> tuple[Dates, dict[str, Array]]:
        """Return the dates in order, [n], and the columns, [n] each, of forecasts of `target` `horizon` days ahead."""
        rows = np.flatnonzero((self.targets == target) & (self.horizons == horizon))
        rows = rows[np.argsort(self.dates[rows], kind="stable")]
        return self.dates[rows], {name: column[rows] for name, column in self.values.items()}

    def _get_column(self, name: str) -> Array:
        return self.values.get(name, np.full(len(self.dates), np.nan))


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Hold the mean adjacency [N, N]: the weight of what the row's node receives from the column's node."""

    nodes: list[str]
    weights: Array


def read_forecasts(path: Path) -> Forecasts | None:
    """Read `forecasts.csv`; None for a missing file. Raises DataError, which names the fault, for a damaged one."""
    table = _read_rows(path)
    if table is None:
        return None
    header, rows = table
    if missing_columns := [name for name in (*_KEYS, "forecast", "truth") if name not in header]:
        raise DataError(f"{path}: column {missing_columns[0]} is missing; restore the file, or delete it")
    if not rows:
        raise DataError(f"{path}: no rows; restore the file, or delete it")
    columns = {name: [row[index] for row in rows] for index, name in enumerate(header)}
    horizons = _parse_numbers(path, "horizon", columns["horizon"])
    if not bool((np.isfinite(horizons) & (horizons >= 1) & (horizons < 1e6) & (horizons % 1 == 0)).all()):
        raise DataError(f"{path}: column horizon: expected integers from 1; restore the file")
    return Forecasts(
        dates=_parse_dates(path, columns["date"]),
        horizons=horizons.astype(np.int64),
        targets=np.array(columns["target"], dtype=np.str_),
        values={name: _parse_numbers(path, name, cells) for name, cells in columns.items() if name not in _KEYS},
    )


def read_adjacency(path: Path) -> Adjacency | None:
    """Read `adjacency.csv`; None for a missing file. Raises DataError for a damaged one."""
    table = _read_rows(path)
    if table is None:
        return None
    header, rows = table
    nodes = header[1:]
    if [row[0] for row in rows] != nodes or not nodes:
        raise DataError(f"{path}: the names of rows and columns differ; restore the file, or delete it")
    weights = [_parse_numbers(path, name, [row[index] for row in rows]) for index, name in enumerate(nodes, start=1)]
    return Adjacency(nodes, np.stack(weights, axis=1))


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]] | None:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: damaged or not CSV: {error}; restore the file, or delete it") from error
    if not rows:
        raise DataError(f"{path}: empty; restore the file, or delete it")
    header, *body = rows
    if len(set(header)) != len(header):
        raise DataError(f"{path}: line 1: duplicate column name; restore the file, or delete it")
    for line, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}: line {line}: {len(row)} cells, expected {len(header)}; restore the file")
    return header, body


def _parse_numbers(path: Path, name: str, cells: list[str]) -> Array:
    try:
        return np.array([float(cell) if cell else np.nan for cell in cells], dtype=np.float64)
    except ValueError as error:
        raise DataError(f"{path}: column {name}: {error}; restore the file, or delete it") from error


def _parse_dates(path: Path, cells: list[str]) -> Dates:
    try:
        dates = np.array(cells, dtype="datetime64[D]")
    except ValueError as error:
        raise DataError(f"{path}: column date: {error}; restore the file, or delete it") from error
    if np.isnat(dates).any():
        raise DataError(f"{path}: column date: a cell is empty; restore the file, or delete it")
    return dates
