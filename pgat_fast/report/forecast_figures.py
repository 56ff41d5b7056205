"""Figures of the forecasts on the test windows, of their errors and intervals, and of the adjacency."""

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
    add_legend,
    draw_line,
    new_figure,
    plain_label,
    style_axes,
)
from pgat_fast.report.tables import Adjacency, Forecasts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
"""Maximum number of targets in the figure of the forecasts."""

_FEW = 4
"""Number of days below which lines get markers."""

MOST_NAMES = 40
"""Maximum number of node names beside the heat map; of more nodes every second, third, ... is named."""


def draw_forecasts(forecasts: Forecasts) -> "Figure":
    """Draw a panel per target: truth, and the forecasts of the first and the last day with 80 % intervals."""
    names = forecasts.names[:MOST_PANELS]
    figure = new_figure(0.35 + 2.35 * len(names))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        _draw_forecast_panel(axes, forecasts, name)
    add_legend(panels[0], 3, [*_label_horizon(1), *_label_horizon(forecasts.last_horizon), "truth"])
    return figure


def _label_horizon(days: int) -> tuple[str, str]:
    """Return the legend labels of the forecast `days` ahead and of its interval."""
    label = f"{days} day{'s' if days > 1 else ''} ahead"
    return label, f"{label}, 80 % interval"


def _draw_forecast_panel(axes: "Axes", forecasts: Forecasts, name: str) -> None:
    prices = forecasts.has_prices(name)
    forecast, truth = ("price_forecast", "price_truth") if prices else ("forecast", "truth")
    last = forecasts.last_horizon
    styles = [(last, VERMILLION, "--")] * (last > 1) + [(1, BLUE, "-")]
    truths: dict[np.datetime64, float] = {}
    for horizon, color, dashes in styles:
        label, band_label = _label_horizon(horizon)
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
    style_axes(axes, x="", y="price" if prices else "target units", title=plain_label(title))
    _format_date_axis(axes, days)


def _format_date_axis(axes: "Axes", days: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if days[-1] - days[0] <= np.timedelta64(8, "D"):  # a locator would label hours
        axes.set_xticks(days, [str(day) for day in days])
        return
    locator = AutoDateLocator(minticks=4, maxticks=9)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    # Year, month, day; hours, minutes and seconds do not occur.
    formats = ["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S.%f"]
    zeros = ["", *formats[:-1]]
    formatter = ConciseDateFormatter(  # type: ignore[no-untyped-call]
        locator, formats=formats, zero_formats=zeros, show_offset=False
    )
    axes.xaxis.set_major_formatter(formatter)


def draw_error_by_horizon(by_horizon: Mapping[str, Mapping[str, Sequence[float | None]] | None]) -> "Figure | None":
    """Draw the RMSE of each forecast day, of the model and the naive baselines, with a panel per unit."""
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
        style_axes(
            axes,
            x="days ahead",
            y="RMSE",
            title=f"RMSE by horizon, {'scaled units' if name == 'scaled' else 'prices'}",
        )
        axes.margins(y=0.15)
        add_legend(axes, 4 if len(units) == 1 else 2)
        _set_day_ticks(axes, max(len(curve) for curve in curves.values()))
    return figure


def _set_day_ticks(axes: "Axes", days: int) -> None:
    axes.set_xticks(range(1, days + 1, -(-days // 10)))
    axes.set_xlim(0.6, days + 0.4)


def draw_adversarial_errors(clean: float | None, scenarios: Mapping[str, Any]) -> "Figure | None":
    """Draw the RMSE on clean and on perturbed histories, in scaled units; failed scenarios are marked."""
    if not scenarios:
        return None
    rows = [("clean", clean, BLUE)]
    for name, scenario in scenarios.items():
        metrics = scenario.get("metrics") if scenario.get("status") == "ok" else None
        rmse = ((metrics or {}).get("overall") or {}).get("rmse")
        rows.append((plain_label(name.replace("_", " ")), rmse, VERMILLION))
    figure = new_figure(1.1 + 0.42 * len(rows))
    axes = figure.subplots()
    for index, (_, error, color) in enumerate(rows):
        axes.barh(index, error or 0.0, height=0.62, color=color)
        axes.annotate("failed" if error is None else f"{error:.4g}", (max(error or 0.0, clean or 0.0), index), (4, 0),
                      textcoords="offset points", va="center", fontsize=8.5, color=INK)  # fmt: skip
    if clean is not None:
        axes.axvline(clean, color=BLUE, linewidth=1.0, linestyle="--")
    style_axes(axes, x="RMSE (scaled units)", y="", title="RMSE on perturbed histories")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.12 * max([error for _, error, _ in rows if error], default=1.0))  # space for the numbers
    return figure


def draw_coverage(units: Mapping[str, Sequence[Coverage]]) -> "Figure | None":
    """Draw the empirical against the nominal coverage; calibrated intervals lie on the diagonal."""
    by_unit = {name: coverages for name, coverages in units.items() if coverages}
    if not by_unit:
        return None
    figure = new_figure(3.3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", label="calibrated")
    styles = {"scaled": (BLUE, "o", "-", "scaled units"), "price": (VERMILLION, "s", ":", "prices")}
    for name, coverages in by_unit.items():
        color, marker, dashes, label = styles[name]
        points = [(c.nominal, c.covered) for c in coverages if c.covered is not None]
        x, y = [nominal for nominal, _ in points], [covered for _, covered in points]
        axes.plot(x, y, color=color, marker=marker, markersize=7, linestyle=dashes, linewidth=1.2, label=label)
    style_axes(axes, x="nominal coverage", y="empirical coverage", title="Coverage of the forecast intervals")
    levels = sorted({c.nominal for coverages in by_unit.values() for c in coverages})
    axes.set_xticks(levels, [f"{level:.0%}" for level in levels])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_xlim(min(0.4, levels[0] - 0.1), 1.0)
    axes.set_ylim(0, 1.03)
    add_legend(axes, 3)
    return figure


def draw_adjacency(adjacency: Adjacency) -> "Figure":
    """Draw the mean adjacency as a heat map; row nodes receive from column nodes."""
    count = len(adjacency.nodes)
    figure = new_figure(6.4)
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(adjacency.weights), cmap="cividis", interpolation="nearest")
    step = -(-count // MOST_NAMES)
    indices = range(0, count, step)
    names = [plain_label(adjacency.nodes[index].replace("_", " ")) for index in indices]
    size = 8.5 if len(names) <= 16 else 6.5
    axes.set_xticks(indices, names, rotation=90 if count > 16 else 45, ha="center" if count > 16 else "right",
                    rotation_mode="default" if count > 16 else "anchor", fontsize=size)  # fmt: skip
    axes.set_yticks(indices, names, fontsize=size)
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
