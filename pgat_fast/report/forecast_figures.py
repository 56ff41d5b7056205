"""Figures of how well the best weights did on the test windows, and of the adjacency."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pgat_fast.report.coverage import Coverage
from pgat_fast.report.figure_style import (
    BLUE,
    FORECASTERS,
    INK,
    MUTED,
    VERMILLION,
    draw_line,
    legend_above,
    new_figure,
    plain,
    style,
)
from pgat_fast.report.tables import Adjacency, Forecasts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
"""Targets that are drawn: more would make a figure that nobody scrolls through."""

_FEW = 4
"""Days below which a line is hardly seen: it gets markers."""

MOST_NAMES = 40
"""Node names beside a heat map; of more nodes every second, third, ... is named."""


def forecast_and_truth(forecasts: Forecasts) -> "Figure":
    """A panel a target: truth, the forecast one day ahead and the one for the last day, with 80 % bands."""
    names = forecasts.names[:MOST_PANELS]
    figure = new_figure(0.35 + 2.35 * len(names))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        _forecast_panel(axes, forecasts, name)
    legend_above(panels[0], 3, [label for days in (1, forecasts.last_horizon) for label in _labels(days)] + ["truth"])
    return figure


def _labels(days: int) -> tuple[str, str]:
    """Of the forecast so many days ahead, and of its interval."""
    ahead = f"{days} day{'s' if days > 1 else ''} ahead"
    return ahead, f"{ahead}, 80 % interval"


def _forecast_panel(axes: "Axes", forecasts: Forecasts, name: str) -> None:
    prices = forecasts.has_prices(name)
    forecast, truth = ("price_forecast", "price_truth") if prices else ("forecast", "truth")
    last = forecasts.last_horizon
    styles = [(last, VERMILLION, "--")] * (last > 1) + [(1, BLUE, "-")]
    truths: dict[np.datetime64, float] = {}
    for horizon, color, dashes in styles:
        label, band_label = _labels(horizon)
        dates, columns = forecasts.series(name, horizon)
        truths |= dict(zip(dates, columns[truth], strict=True))
        band = [columns[key] for key in ("price_lower_80", "price_upper_80") if prices and key in columns]
        if len(band) == 2 and np.isfinite(band).any():
            axes.fill_between(dates, band[0], band[1], color=color, alpha=0.16, linewidth=0, label=band_label)
        draw_line(axes, dates, columns[forecast], color=color, linestyle=dashes, linewidth=1.5, label=label,
                  marker="o" if len(dates) < _FEW else None, markersize=5)  # fmt: skip
    days = np.array(sorted(truths))
    draw_line(axes, days, np.array([truths[day] for day in days]), color=INK, linewidth=1.5, label="truth",
              marker="D" if len(days) < _FEW else None, markersize=5)  # fmt: skip
    title = name.removeprefix("log_") if prices else name
    style(axes, x="", y="price" if prices else "target units", title=plain(title))
    _date_axis(axes, days)


def _date_axis(axes: "Axes", days: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if days[-1] - days[0] <= np.timedelta64(8, "D"):  # a locator would show the hours between them
        axes.set_xticks(days, [str(day) for day in days])
        return
    locator = AutoDateLocator(minticks=4, maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    # Year, month, day, and what a chart of days never shows: hours, minutes, seconds.
    shown = ["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S.%f"]
    zeros = ["", *shown[:-1]]
    formatter = ConciseDateFormatter(  # type: ignore[no-untyped-call]
        locator, formats=shown, zero_formats=zeros, show_offset=False
    )
    axes.xaxis.set_major_formatter(formatter)


def error_by_horizon(by_horizon: Mapping[str, Mapping[str, Sequence[float | None]] | None]) -> "Figure | None":
    """RMSE of each forecast day, of the model and the naive baselines; a panel for each unit there is."""
    units = [(name, curves) for name in ("scaled", "price") if (curves := by_horizon.get(name))]
    if not units:
        return None
    figure = new_figure(3.1)
    for axes, (name, curves) in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
        for key, (label, color, dashes, marker) in FORECASTERS.items():
            if key in curves:
                errors = np.array(curves[key], dtype=np.float64)
                draw_line(axes, np.arange(1, len(errors) + 1), errors, color=color, linestyle=dashes, label=label,
                          marker=marker if len(errors) <= 30 else None, markersize=4,
                          linewidth=2.2 if key == "model" else 1.4, zorder=3 if key == "model" else 2)  # fmt: skip
        style(
            axes,
            x="days ahead",
            y="RMSE",
            title=f"Error by horizon, {'scaled units' if name == 'scaled' else 'prices'}",
        )
        axes.margins(y=0.15)
        legend_above(axes, 4 if len(units) == 1 else 2)
        _day_ticks(axes, max(len(curve) for curve in curves.values()))
    return figure


def _day_ticks(axes: "Axes", days: int) -> None:
    axes.set_xticks(range(1, days + 1, -(-days // 10)))
    axes.set_xlim(0.6, days + 0.4)


def adversarial_errors(clean: float | None, scenarios: Mapping[str, Any]) -> "Figure | None":
    """RMSE on perturbed histories beside that on clean ones, in scaled units; a failed scenario says so."""
    if not scenarios:
        return None
    rows = [("clean", clean, BLUE)]
    for name, scenario in scenarios.items():
        metrics = scenario.get("metrics") if scenario.get("status") == "ok" else None
        rows.append((plain(name.replace("_", " ")), ((metrics or {}).get("overall") or {}).get("rmse"), VERMILLION))
    figure = new_figure(1.1 + 0.42 * len(rows))
    axes = figure.subplots()
    for place, (_, error, color) in enumerate(rows):
        axes.barh(place, error or 0.0, height=0.62, color=color)
        axes.annotate("failed" if error is None else f"{error:.4g}", (max(error or 0.0, clean or 0.0), place), (4, 0),
                      textcoords="offset points", va="center", fontsize=8.5, color=INK)  # fmt: skip
    if clean is not None:
        axes.axvline(clean, color=BLUE, linewidth=1.0, linestyle="--")
    style(axes, x="RMSE (scaled units)", y="", title="Errors on perturbed histories")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max([error for _, error, _ in rows if error], default=1.0))  # room for the figures
    return figure


def interval_coverage(units: Mapping[str, Sequence[Coverage]]) -> "Figure | None":
    """Share of truths within the intervals against what the intervals were made for; on the line is right."""
    shown = {name: coverages for name, coverages in units.items() if coverages}
    if not shown:
        return None
    figure = new_figure(3.3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", label="as promised")
    styles = {"scaled": (BLUE, "o", "-", "scaled units"), "price": (VERMILLION, "s", ":", "prices")}
    for name, coverages in shown.items():
        color, marker, dashes, label = styles[name]
        known = [(c.nominal, c.covered) for c in coverages if c.covered is not None]
        x, y = [nominal for nominal, _ in known], [covered for _, covered in known]
        axes.plot(x, y, color=color, marker=marker, markersize=7, linestyle=dashes, linewidth=1.2, label=label)
    style(axes, x="nominal coverage", y="share of truths inside", title="Coverage of the intervals")
    levels = sorted({c.nominal for coverages in shown.values() for c in coverages})
    axes.set_xticks(levels, [f"{level:.0%}" for level in levels])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_xlim(min(0.4, levels[0] - 0.1), 1.0)
    axes.set_ylim(0, 1.03)
    legend_above(axes, 3)
    return figure


def adjacency_map(adjacency: Adjacency) -> "Figure":
    """The mean adjacency as a heat map: row: who receives, column: from whom."""
    count = len(adjacency.nodes)
    figure = new_figure(6.4)
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(adjacency.weights), cmap="cividis", interpolation="nearest")
    step = -(-count // MOST_NAMES)
    places = range(0, count, step)
    names = [plain(adjacency.nodes[place].replace("_", " ")) for place in places]
    size = 8.5 if len(names) <= 16 else 6.5
    axes.set_xticks(places, names, rotation=90 if count > 16 else 45, ha="center" if count > 16 else "right",
                    rotation_mode="default" if count > 16 else "anchor", fontsize=size)  # fmt: skip
    axes.set_yticks(places, names, fontsize=size)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=2)
    axes.set_xlabel("from node", color=MUTED, fontsize=9)
    axes.set_ylabel("to node", color=MUTED, fontsize=9)
    axes.set_title("Mean adjacency", loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("mean weight", color=MUTED, fontsize=9)
    bar.ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5)
    bar.outline.set_visible(False)
    return figure
