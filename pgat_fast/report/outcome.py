"""The sections of the page that say how well the forecasts did."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pgat_fast.evaluation.metrics import skill
from pgat_fast.report.coverage import Coverage, coverages
from pgat_fast.report.markup import (
    Html,
    Section,
    aligned,
    badge,
    folded,
    heading,
    join,
    number,
    paragraph,
    percent,
    raw,
    section,
    signed,
    table,
)
from pgat_fast.report.run_files import RunFiles

Figures = Mapping[str, Html]
"""Name of a plot -> the figure; a plot that could not be drawn is not there."""

UNITS = {"scaled": "scaled units", "price": "prices"}
_SMALL = 0.01
"""A skill within this of 0 is said to be hardly different from none."""
_LONG = 15
"""Rows above which a table is folded away."""


def verdict(skills: Mapping[str, float | None]) -> str:
    """What the skill against each baseline says, in words without praise: it goes on after `Squared error: `."""
    better = [f"{plain(name)} ({_margin(value)})" for name, value in skills.items() if value is not None and value > 0]
    others = {name: value for name, value in skills.items() if value is None or value <= 0}
    worse = [f"{plain(name)} ({_margin(value)})" for name, value in others.items()]
    parts = []
    if better:
        parts.append(f"better than {_list(better, 'and')}")
    if worse:
        parts.append(f"no better than {_list(worse, 'or')}")
    return ", ".join(parts) or "not compared with any baseline"


def _margin(value: float | None) -> str:
    if value is None:
        return "error not finite"
    amount = f"{100 * abs(value):.3g}\N{NO-BREAK SPACE}%"
    small = "only " if 0 < value < _SMALL else ""
    return f"{small}{amount}\N{NO-BREAK SPACE}{'lower' if value > 0 else 'higher'}"


def _list(items: Sequence[str], last: str) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def plain(name: str) -> str:
    """A name of the results in words: `last_value` is `last value`."""
    return name.replace("_", " ")


def outcome_sections(run: RunFiles, figures: Figures) -> Iterator[Section]:
    """Checklist, errors, targets, forecasts, horizon, intervals, diagnostics: those that the run has come to."""
    if not run.results:
        return
    test = run.results["test"]
    yield checklist_section(run.results["checklist"])
    units = {name: test[name] for name in UNITS if test[name]}
    yield section(
        "errors",
        "Errors beside naive baselines",
        *(_errors(name, unit, test["relative_prices"]) for name, unit in units.items()),
    )
    targets = run.results["targets"]
    yield section(
        "targets",
        "Targets",
        *(_targets(name, unit, targets) for name, unit in units.items()),
        _figure(figures, "forecasts"),
    )
    yield section("horizon", "Error by horizon", _figure(figures, "error_by_horizon"), _horizon(test["by_horizon"]))
    yield section("intervals", "Intervals", _figure(figures, "interval_coverage"), *_intervals(test))
    yield section("adversarial", "Adversarial diagnostics", _figure(figures, "adversarial"), _adversarial(run.results))


def checklist_section(lines: Sequence[Mapping[str, Any]]) -> Section:
    """Yes or no and the figure for each check."""
    passed = sum(line["passed"] for line in lines)
    rows = [
        (line["check"], raw(badge("yes", "good") if line["passed"] else badge("no", "bad")), line["figure"])
        for line in lines
    ]
    return section("checklist", f"Checklist: {passed} of {len(lines)}", table(("check", "passed", "figure"), rows))


def _figure(figures: Figures, name: str) -> Html:
    return figures.get(name, Html(""))


def _errors(units: str, comparison: Mapping[str, Any], relative: bool) -> Html:
    measures = ["mae", "mse", "rmse"] + (["mape"] if units == "price" else [])
    names = ("model", *comparison["skill"])
    overall = [comparison.get(name, {}).get("overall", {}) for name in names]
    columns = [
        [percent(m.get(key), 2) for m in overall] if key == "mape" else aligned([m.get(key) for m in overall])
        for key in measures
    ]
    skills = ["", *map(signed, comparison["skill"].values())]
    rows = zip(map(plain, names), *columns, skills, strict=True)
    header = ["forecast", *(key.upper() for key in measures), "skill"]
    note = (
        "Skill is 1 \N{MINUS SIGN} MSE / MSE of the baseline: above 0 the model is better, 1 is perfect. Last value "
        "repeats the last known targets, zero return keeps the last close, drift goes on with the mean of the training "
        "rows."
    )
    title = UNITS[units].capitalize()
    if units == "price" and relative:
        title += ", in units of the close before the first row"
    return join([heading(title), table(header, rows, note)])


def _targets(units: str, comparison: Mapping[str, Any], targets: Sequence[str]) -> Html:
    baselines = list(comparison["skill"])
    names = ("model", *baselines)
    metrics = {name: [comparison.get(name, {}).get(target, {}) for target in targets] for name in names}
    errors = aligned([m.get("rmse") for name in names for m in metrics[name]])
    columns = [errors[start : start + len(targets)] for start in range(0, len(errors), len(targets))]
    for name in baselines:
        pairs = zip(metrics["model"], metrics[name], strict=True)
        columns.append([signed(skill(model.get("mse"), naive.get("mse"))) for model, naive in pairs])
    rows = list(zip(targets, *columns, strict=True))
    header = [
        "target",
        *(f"RMSE {plain(name)}" for name in names),
        *(f"skill, {plain(name)}" for name in baselines),
    ]
    return _maybe_folded(UNITS[units].capitalize(), len(rows), table(header, rows))


def _horizon(by_horizon: Mapping[str, Mapping[str, Sequence[float | None]] | None]) -> Html:
    parts = []
    for units, curves in by_horizon.items():
        if curves:
            days = max(map(len, curves.values()))
            errors = aligned([error for curve in curves.values() for error in (*curve, *[None] * (days - len(curve)))])
            columns = [errors[start : start + days] for start in range(0, len(errors), days)]
            rows = zip(map(str, range(1, days + 1)), *columns, strict=True)
            header = ["days ahead", *(f"RMSE {plain(name)}" for name in curves)]
            parts.append(folded(f"Figures in {UNITS.get(units, units)}", table(header, rows)))
    return join(parts)


def _maybe_folded(title: str, rows: int, content: Html) -> Html:
    return folded(f"{title}: {rows} rows", content) if rows > _LONG else join([heading(title), content])


def _intervals(test: Mapping[str, Any]) -> Iterator[Html]:
    intervals, mixture = test["intervals"], test["mixture"]
    if intervals is None:
        yield paragraph("This run has no intervals.")
    else:
        if "method" in intervals:
            windows = intervals.get("calibration_windows")
            calibrated = "" if not windows else f", calibrated on {number(windows)} validation windows"
            yield paragraph(f"Method: {intervals['method']}{calibrated}.")
        levels_by_unit = coverages(intervals)
        for units, levels in levels_by_unit.items():
            if levels:
                yield _coverage(units, levels)
        if not any(levels_by_unit.values()):
            yield table(("measure", "figure"), [(name, value) for name, value in flat(intervals)])
    if mixture:
        yield heading("Mixture of normals")
        yield _mixture(mixture)


def _coverage(units: str, levels: Sequence[Coverage]) -> Html:
    targets = list(dict.fromkeys(name for level in levels for name in level.by_target))
    rows = [
        (
            f"{level.nominal:.0%}",
            percent(level.covered),
            number(level.mean_width),
            *(percent(level.by_target.get(name)) for name in targets),
        )
        for level in levels
    ]
    header = ["nominal", "truths inside", "mean width", *targets]
    note = "A dash: too few validation windows to calibrate this level." if any(
        level.covered is None for level in levels
    ) else ""  # fmt: skip
    content = [heading(UNITS[units].capitalize()), table(header, rows, note)]
    days = max(len(level.by_horizon) for level in levels)
    if days:
        by_day = [
            (f"{day + 1}", *(percent(level.by_horizon[day]) if day < len(level.by_horizon) else "" for level in levels))
            for day in range(days)
        ]
        day_header = ["days ahead", *(f"inside {level.nominal:.0%}" for level in levels)]
        content.append(folded(f"By horizon, {UNITS[units]}", table(day_header, by_day)))
    return join(content)


def _mixture(mixture: Mapping[str, Any]) -> Html:
    """NLL and CRPS overall, by target and by horizon; the coverage stands with the intervals."""
    scores = [mixture.get(name) or {} for name in ("nll", "crps")]
    targets = list(scores[0].get("by_target", {}))
    columns = [aligned([s.get("overall"), *(s.get("by_target", {}).get(target) for target in targets)]) for s in scores]
    header = ("NLL (nats a day)", "CRPS (scaled units)")
    parts = [table(("target", *header), zip(["all", *targets], *columns, strict=True), "Lower is better.")]
    days = [s.get("by_horizon") or [] for s in scores]
    if any(days):
        numbers = map(str, range(1, 1 + max(map(len, days))))
        rows = zip_longest(numbers, *map(aligned, days), fillvalue="")
        parts.append(folded("By horizon, mixture", table(("days ahead", *header), rows)))
    return join(parts)


def _adversarial(results: Mapping[str, Any]) -> Html:
    scenarios = results["adversarial"].get("scenarios", {})
    if not scenarios:
        return paragraph("No scenario was run.")
    clean = results["test"]["scaled"].get("model", {}).get("overall", {})
    rows: list[tuple[Any, ...]] = [("clean", "", "", number(clean.get("mae")), number(clean.get("rmse")), "", "", "")]
    for name, scenario in scenarios.items():
        overall = (scenario.get("metrics") or {}).get("overall") or {}
        change = scenario.get("change") or {}
        failed = scenario.get("status") != "ok"
        what = str(scenario.get("description") or "") + (f": {scenario.get('error')}" if failed else "")
        rows.append(
            (
                plain(name),
                raw(badge("failed", "bad") if failed else badge("ok", "good")),
                what,
                number(overall.get("mae")),
                number(overall.get("rmse")),
                signed(change.get("rmse")),
                number(change.get("ratio")),
                number(scenario.get("shift")),
            )
        )
    header = ("scenario", "status", "what is done to the history", "MAE", "RMSE", "change of RMSE", "ratio", "shift")
    return table(
        header,
        rows,
        "Scaled units. Change and ratio of the RMSE are against the clean history; the shift is the RMSE between both "
        "forecasts.",
    )


def flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, with names such as `coverage 0.5 overall`; lists as text."""
    for key, value in tree.items():
        name = f"{above} {plain(str(key))}".strip()
        if isinstance(value, Mapping):
            yield from flat(value, name)
        elif isinstance(value, list):
            yield name, ", ".join(number(item) for item in value)
        else:
            yield name, value
