"""The mean forecast of several runs of one configuration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pgat_fast.errors import ConfigError
from pgat_fast.forecasting.history import Source
from pgat_fast.forecasting.load_run import Run
from pgat_fast.forecasting.predict import predict


def predict_ensemble(runs: Sequence[Run], source: Source, **how: Any) -> pd.DataFrame:
    """Return the mean of the forecasts of `runs` for the days after the last row of `source`.

    Prices are averaged by the geometric mean, which averages returns. Interval bounds are averaged in the same way.
    The bounds of each member are calibrated on its own errors, and the errors of the ensemble are no larger on average,
    so the coverage of the averaged intervals should be about the nominal level or higher. It is not guaranteed.

    Args:
        runs: runs from `load_run`, with the same targets and the same number of forecast days.
        source, how: passed to `predict`.

    Returns:
        The table of `predict` with a column `NAME_spread` after each target: the standard deviation over the members,
        in percent of the mean for prices, otherwise in units of the target; NaN with a single member. `attrs` also
        holds the `members`.

    Raises:
        ConfigError: there are no runs, or their forecasts have different columns or days.
        DataError, ConfigError, CheckpointError: as for `predict`.
    """
    if not runs:
        raise ConfigError("an ensemble needs at least one run")
    forecasts = [predict(run, source, **how) for run in runs]
    first = forecasts[0]
    for run, other in zip(runs, forecasts, strict=True):
        if list(other.columns) != list(first.columns) or not other["date"].equals(first["date"]):
            raise ConfigError(f"{run.folder}: its forecast has other columns or days than that of {runs[0].folder}")
    prices = first.attrs["last_close"] is not None
    names = [name for name in first.columns if name not in ("date", "horizon")]
    values = np.stack([forecast[names].to_numpy(dtype=np.float64) for forecast in forecasts])
    logs = np.log(values) if prices else values
    mean = logs.mean(axis=0)
    spread = logs.std(axis=0, ddof=1) if len(runs) > 1 else np.full_like(mean, np.nan)
    mean, spread = (np.exp(mean), 100 * spread) if prices else (mean, spread)
    columns: dict[str, Any] = {"date": first["date"], "horizon": first["horizon"]}
    for i, name in enumerate(names):
        columns[name] = mean[:, i]
        if "_lower_" not in name and "_upper_" not in name:
            columns[f"{name}_spread"] = spread[:, i]
    frame = pd.DataFrame(columns)
    frame.attrs = {**first.attrs, "members": [str(run.folder) for run in runs]}
    return frame
