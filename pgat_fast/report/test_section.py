"""Values that the page shows about the test windows: errors, skills, intervals, perturbed histories."""

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from pgat_fast.evaluation.metrics import skill
from pgat_fast.report.coverage import Coverage, read_coverage
from pgat_fast.report.formatting import (
    NumberTable,
    format_aligned,
    format_name,
    format_number,
    format_percent,
    format_signed,
    make_aligned_formatter,
)

Record = Mapping[str, Any]

UNITS = {"scaled": "scaled units", "price": "prices"}
_SMALL_SKILL = 0.01
"""Positive skills below this are reported as `only`."""


def summarize_test(results: Record) -> dict[str, Any]:
    """Prepare what the header of the page and the template `test_section.html.j2` show of `results.json`."""
    test, targets = results["test"], results["targets"]
    comparisons = {units: test[units] for units in UNITS if test[units]}
    mixture, scenarios = test["mixture"], results["adversarial"].get("scenarios", {})
    clean = {"status": "ok", "description": "none", "metrics": test["scaled"].get("model")}
    return {
        "verdicts": {UNITS[units]: describe_skills(metrics["skill"]) for units, metrics in comparisons.items()},
        "checks_passed": sum(check["passed"] for check in results["checklist"]),
        "errors": [_tabulate_errors(units, metrics, test["relative_prices"]) for units, metrics in comparisons.items()],
        "targets": [_tabulate_targets(units, metrics, targets) for units, metrics in comparisons.items()],
        "horizon": [_tabulate_curves(units, curves) for units, curves in test["by_horizon"].items() if curves],
        "intervals": test["intervals"],
        "coverage": [
            _tabulate_coverage(units, levels) for units, levels in read_coverage(test["intervals"]).items() if levels
        ],
        "mixture": [_tabulate_mixture(mixture)] if mixture else [],
        "scenarios": [_prepare_scenario(*item) for item in {"clean": clean, **scenarios}.items()] if scenarios else [],
    }


def describe_skills(skills: Mapping[str, float | None]) -> str:
    """Describe in words how the squared error of the model compares with that of each baseline."""
    better = [_describe_skill(*item) for item in skills.items() if item[1] is not None and item[1] > 0]
    worse = [_describe_skill(*item) for item in skills.items() if item[1] is None or item[1] <= 0]
    parts = []
    if better:
        parts.append(f"better than {_enumerate(better, 'and')}")
    if worse:
        parts.append(f"no better than {_enumerate(worse, 'or')}")
    return ", ".join(parts) or "not compared with any baseline"


def _describe_skill(baseline: str, value: float | None) -> str:
    if value is None:
        return f"{format_name(baseline)} (error not finite)"
    margin = f"{100 * abs(value):.3g}\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}{'lower' if value > 0 else 'higher'}"
    return f"{format_name(baseline)} ({'only ' if 0 < value < _SMALL_SKILL else ''}{margin})"


def _enumerate(items: Sequence[str], conjunction: str) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {conjunction} {items[-1]}"


def _tabulate_errors(units: str, comparison: Record, relative_prices: bool) -> NumberTable:
    title = UNITS[units].capitalize()
    if units == "price" and relative_prices:
        title += ", in units of the close before the first row"
    names = ("model", *comparison["skill"])
    metrics = [comparison.get(name, {}).get("overall", {}) for name in names]
    measures = ["mae", "mse", "rmse"]
    columns = [[metric.get(measure) for metric in metrics] for measure in measures]
    cells = [format_aligned(column) for column in columns]
    if units == "price":
        measures.append("mape")
        cells.append([format_percent(metric.get("mape"), 2) for metric in metrics])
    skills = ["", *map(format_signed, comparison["skill"].values())]
    header = ["forecast", *(measure.upper() for measure in measures), "skill"]
    return NumberTable(title, header, list(zip(map(format_name, names), *cells, skills, strict=True)))


def _tabulate_targets(units: str, comparison: Record, targets: Sequence[str]) -> NumberTable:
    baselines = list(comparison["skill"])
    names = ("model", *baselines)
    metrics = [[comparison.get(name, {}).get(target, {}) for name in names] for target in targets]
    format_error = make_aligned_formatter(metric.get("rmse") for row in metrics for metric in row)
    rows = [
        [
            target,
            *(format_error(metric.get("rmse")) for metric in (model, *naive)),
            *(format_signed(skill(model.get("mse"), metric.get("mse"))) for metric in naive),
        ]
        for target, (model, *naive) in zip(targets, metrics, strict=True)
    ]
    header = ["target", *(f"RMSE {format_name(name)}" for name in names)]
    header += [f"skill, {format_name(name)}" for name in baselines]
    return NumberTable(UNITS[units].capitalize(), header, rows)


def _tabulate_curves(units: str, curves: Mapping[str, Sequence[float | None]]) -> NumberTable:
    format_error = make_aligned_formatter(chain(*curves.values()))
    columns = [list(map(format_error, curve)) for curve in curves.values()]
    header = [f"RMSE {format_name(name)}" for name in curves]
    return _tabulate_horizons(f"RMSE by horizon, {UNITS.get(units, units)}", header, columns)


def _tabulate_horizons(title: str, header: Sequence[str], columns: Sequence[Sequence[str]]) -> NumberTable:
    rows = [(str(day), *cells) for day, cells in enumerate(zip_longest(*columns, fillvalue=""), start=1)]
    return NumberTable(title, ["days ahead", *header], rows)


def _tabulate_coverage(units: str, levels: Sequence[Coverage]) -> tuple[NumberTable, NumberTable]:
    """Tabulate the coverage by target and by horizon."""
    targets = list(dict.fromkeys(name for level in levels for name in level.by_target))
    rows = [
        (
            f"{level.nominal:.0%}",
            format_percent(level.covered),
            format_number(level.mean_width),
            *(format_percent(level.by_target.get(name)) for name in targets),
        )
        for level in levels
    ]
    incomplete = any(level.covered is None for level in levels)
    note = "A dash means that too few validation windows were available to calibrate the level." if incomplete else ""
    header = ["nominal coverage", "empirical coverage", "mean width", *targets]
    by_target = NumberTable(f"Coverage, {UNITS[units]}", header, rows, note)
    by_horizon = _tabulate_horizons(
        f"Coverage by horizon, {UNITS[units]}",
        [f"{level.nominal:.0%} interval" for level in levels],
        [list(map(format_percent, level.by_horizon)) for level in levels],
    )
    return by_target, by_horizon


def _tabulate_mixture(mixture: Record) -> tuple[NumberTable, NumberTable]:
    """Tabulate NLL and CRPS by target and by horizon."""
    scores = [mixture.get(name) or {} for name in ("nll", "crps")]
    targets = list(scores[0].get("by_target", {}))
    columns = [[s.get("overall"), *(s.get("by_target", {}).get(target) for target in targets)] for s in scores]
    cells = [format_aligned(column) for column in columns]
    header = ["NLL (nats per day)", "CRPS (scaled units)"]
    rows = list(zip(["all", *targets], *cells, strict=True))
    by_target = NumberTable("Gaussian mixture", ["target", *header], rows, "Lower is better.")
    curves = [s.get("by_horizon") or [] for s in scores]
    by_horizon = _tabulate_horizons("Gaussian mixture by horizon", header, list(map(format_aligned, curves)))
    return by_target, by_horizon


def _prepare_scenario(name: str, scenario: Record) -> dict[str, Any]:
    """Prepare a row of the table of perturbed histories."""
    metrics = (scenario.get("metrics") or {}).get("overall") or {}
    change = scenario.get("change") or {}
    failed = scenario.get("status") != "ok"
    return {
        "name": format_name(name),
        "failed": failed,
        "description": str(scenario.get("description") or "") + (f": {scenario.get('error')}" if failed else ""),
        "errors": [metrics.get("mae"), metrics.get("rmse")],
        "changes": [format_signed(change.get("rmse")), change.get("ratio"), scenario.get("shift")],
    }
