"""Tables of numbers that the page shows: errors, skills, interval coverage, scores of a mixture, training speed."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from pgat_fast.evaluation.metrics import skill
from pgat_fast.report.formatting import (
    format_aligned,
    format_name,
    format_number,
    format_percent,
    format_signed,
    make_aligned_formatter,
)

Record = Mapping[str, Any]

UNITS = {"scaled": "scaled units", "price": "prices"}

_SPEEDS = {
    "seconds_per_step": "seconds per step",
    "windows_per_second": "windows per second",
    "samples_per_second": "samples per second (days of history)",
}


@dataclass(frozen=True)
class NumberTable:
    """A table of numbers; its first column names the rows."""

    title: str
    columns: Mapping[str, Sequence[object]]
    """Cells by column name: numbers or formatted text. Short columns are filled with empty cells."""
    note: str = ""

    @property
    def rows(self) -> list[tuple[object, ...]]:
        return list(zip_longest(*self.columns.values(), fillvalue=""))


def tabulate_errors(test: Record) -> Iterator[NumberTable]:
    """Yield the errors of the model and the baselines over all targets, for each unit."""
    for units in filter(test.get, UNITS):
        comparison = test[units]
        names = ["model", *comparison["skill"]]
        metrics = [comparison.get(name, {}).get("overall", {}) for name in names]
        columns = {"forecast": [format_name(name) for name in names]}
        for measure in ("mae", "mse", "rmse"):
            columns[measure.upper()] = format_aligned([metric.get(measure) for metric in metrics])
        title = UNITS[units].capitalize()
        if units == "price":
            columns["MAPE"] = [format_percent(metric.get("mape"), 2) for metric in metrics]
            title += ", in units of the close before the first row" if test["relative_prices"] else ""
        columns["skill"] = ["", *map(format_signed, comparison["skill"].values())]
        yield NumberTable(title, columns)


def tabulate_targets(test: Record, targets: Sequence[str]) -> Iterator[NumberTable]:
    """Yield the RMSE and the skill of each target, for each unit."""
    for units in filter(test.get, UNITS):
        comparison = test[units]
        names = ["model", *comparison["skill"]]
        metrics = {name: [comparison.get(name, {}).get(target, {}) for target in targets] for name in names}
        format_error = make_aligned_formatter(metric.get("rmse") for metric in chain(*metrics.values()))
        columns: dict[str, Sequence[object]] = {"target": targets}
        for name in names:
            columns[f"RMSE {format_name(name)}"] = [format_error(metric.get("rmse")) for metric in metrics[name]]
        for name in names[1:]:
            pairs = zip(metrics["model"], metrics[name], strict=True)
            columns[f"skill, {format_name(name)}"] = [
                format_signed(skill(model.get("mse"), baseline.get("mse"))) for model, baseline in pairs
            ]
        yield NumberTable(UNITS[units].capitalize(), columns)


def tabulate_horizons(test: Record) -> Iterator[NumberTable]:
    """Yield the RMSE of each forecast day, for each unit."""
    for units, curves in test["by_horizon"].items():
        if curves:
            format_error = make_aligned_formatter(chain(*curves.values()))
            columns = {f"RMSE {format_name(name)}": list(map(format_error, curve)) for name, curve in curves.items()}
            yield _with_days(f"RMSE by horizon, {UNITS.get(units, units)}", columns)


def tabulate_coverage(units: str, levels: Sequence[Record]) -> tuple[NumberTable, NumberTable]:
    """Return the coverage of the interval levels by target and by horizon."""
    columns = {
        "nominal coverage": [f"{level['nominal']:.0%}" for level in levels],
        "empirical coverage": [format_percent(level["overall"]) for level in levels],
        "mean width": [format_number(level["mean_width"]) for level in levels],
    }
    for target in dict.fromkeys(chain(*(level["by_target"] for level in levels))):
        columns[target] = [format_percent(level["by_target"].get(target)) for level in levels]
    incomplete = any(level["overall"] is None for level in levels)
    note = "A dash means that too few validation windows were available to calibrate the level." if incomplete else ""
    by_horizon = {
        f"{level['nominal']:.0%} interval": [format_percent(share) for share in level["by_horizon"]] for level in levels
    }
    return (
        NumberTable(f"Coverage, {UNITS[units]}", columns, note),
        _with_days(f"Coverage by horizon, {UNITS[units]}", by_horizon),
    )


def tabulate_mixture(mixture: Record) -> tuple[NumberTable, NumberTable]:
    """Return NLL and CRPS by target and by horizon."""
    scores = {"NLL (nats per day)": mixture.get("nll") or {}, "CRPS (scaled units)": mixture.get("crps") or {}}
    targets = list((mixture.get("nll") or {}).get("by_target", {}))
    columns = {"target": ["all", *targets]}
    for name, score in scores.items():
        by_target = score.get("by_target", {})
        columns[name] = format_aligned([score.get("overall"), *map(by_target.get, targets)])
    by_horizon = {name: format_aligned(score.get("by_horizon") or []) for name, score in scores.items()}
    return (
        NumberTable("Gaussian mixture", columns, "Lower is better."),
        _with_days("Gaussian mixture by horizon", by_horizon),
    )


def tabulate_speed(metrics: Sequence[Record]) -> NumberTable:
    """Return median, minimum and maximum of the speed over the lines of training in `metrics.jsonl`."""
    lines = [line for line in metrics if line.get("stage") == "train"]
    rows = []
    for key, label in _SPEEDS.items():
        readings = [float(line[key]) for line in lines if isinstance(line.get(key), int | float)]
        if readings:
            rows.append((label, statistics.median(readings), min(readings), max(readings)))
    names = ("", "median", "minimum", "maximum")
    columns = {name: [row[index] for row in rows] for index, name in enumerate(names)}
    return NumberTable("Speed", columns, f"From {len(lines)} readings during training.")


def _with_days(title: str, columns: Mapping[str, Sequence[object]]) -> NumberTable:
    days = range(1, max(map(len, columns.values()), default=0) + 1)
    return NumberTable(title, {"days ahead": days, **columns})
