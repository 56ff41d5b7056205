"""Standardisation of columns with the mean and standard deviation of the training rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from pgat_fast.data.columns import is_angle_pair
from pgat_fast.data.csv_file import FloatArray
from pgat_fast.errors import DataError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scaler:
    """Standardisation of every column to mean 0 and standard deviation 1 over the rows it was fitted on.

    Sines and cosines are left unchanged: scaling them separately would change the angle of the pair. All
    arithmetic is float64; the last axis of the arrays is that of the columns.
    """

    mean: FloatArray
    """[F]"""
    std: FloatArray
    """[F], of the population (divided by n), never 0."""
    columns: tuple[str, ...]
    """F names."""

    @classmethod
    def fit(cls, values: FloatArray, columns: Sequence[str]) -> Self:
        """Compute mean and standard deviation of the training rows, [n, F]; a constant column gets the deviation 1.

        Raises DataError if a column has no finite mean and standard deviation.
        """
        columns = tuple(columns)
        if values.ndim != 2 or values.shape[1] != len(columns) or not len(values):
            raise ValueError(f"values have shape {list(values.shape)}, expected [n, {len(columns)}] with n above 0")
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = values.mean(axis=0), values.std(axis=0)
        pairs = np.array([is_angle_pair(name) for name in columns])
        mean[pairs], std[pairs] = 0.0, 1.0
        non_finite = np.flatnonzero(~np.isfinite(mean + std))
        if len(non_finite):
            raise DataError(
                f"column {columns[non_finite[0]]} (and {len(non_finite) - 1} more) has no finite mean and standard "
                "deviation in the training rows: it holds NaN, infinite or huge values; repair them or leave "
                "the column out"
            )
        # The mean of n equal values is off by up to n roundings, and so is their deviation from it.
        constant = std <= len(values) * np.finfo(np.float64).eps * np.abs(mean)
        if constant.any():
            names = ", ".join(columns[column] for column in np.flatnonzero(constant))
            _log.warning("columns that do not vary in the training rows carry no information: %s", names)
        std[constant] = 1.0
        return cls(mean, std, columns)

    def transform(self, values: FloatArray) -> FloatArray:
        """Return (values - mean) / std, [..., F] -> [..., F]."""
        return (values - self.mean) / self.std

    def inverse(self, scaled: FloatArray) -> FloatArray:
        """Return scaled * std + mean, [..., F] -> [..., F]."""
        return scaled * self.std + self.mean

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, for a checkpoint or a JSON file; `from_dict` restores the same bits."""
        return {"columns": list(self.columns), "mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Restore a scaler from the result of `to_dict`. Raises DataError if `state` is of another form."""
        try:
            columns = tuple(str(name) for name in state["columns"])
            mean, std = (np.array(state[key], dtype=np.float64) for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no stored scaler: {type(error).__name__}: {error}") from error
        if mean.shape != (len(columns),) or std.shape != (len(columns),):
            raise DataError(
                f"a stored scaler has {len(columns)} columns, but a mean of shape {list(mean.shape)} and "
                f"a std of shape {list(std.shape)}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise DataError(
                "a stored scaler has a mean that is not finite or a standard deviation that is not positive"
            )
        return cls(mean, std, columns)
