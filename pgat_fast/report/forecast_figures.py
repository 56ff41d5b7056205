"""Figures of the forecasts on the test windows, of their errors and intervals, and of the adjacency."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
"""Maximum number of targets in the figure of the forecasts."""

_FEW = 4
"""Number of days below which lines get markers."""

MOST_NAMES = 40
"""Maximum number of node names beside the heat map; of more nodes every second, third, ... is named."""


def draw_forecasts(forecasts: pd.DataFrame) -> "Figure":
    """Draw a panel per target: truth, and the forecasts of the first and the last day with 80 % intervals."""
    names = forecasts["target"].unique()[:MOST_PANELS]
    last = int(forecasts["horizon"].max())
    figure = new_figure(0.35 + 2.35 * len(names))
    panels = figure.subplots(len(names), 1, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        _draw_forecast_panel(axes, forecasts[forecasts["target"] == name].sort_values("date", kind="stable"), last)
    add_legend(panels[0], 3, [*_label_horizon(1), *_label_horizon(last), "truth"])
    return figure


def _label_horizon(days: int) -> tuple[str, str]:
    """Return the legend labels of the forecast `days` ahead and of its interval."""
    label = f"{days} day{'s' if days > 1 else ''} ahead"
    return label, f"{label}, 80 % interval"


def _draw_forecast_panel(axes: "Axes", forecasts: pd.DataFrame, last: int) -> None:
    """Draw the forecasts of one target, in order of their dates."""
    prices = "price_forecast" in forecasts and bool(np.isfinite(forecasts["price_forecast"]).any())
    prefix = "price_" if prices else ""
    for horizon, color, dashes in [(last, VERMILLION, "--")] * (last > 1) + [(1, BLUE, "-")]:
        rows = forecasts[forecasts["horizon"] == horizon]
        dates = rows["date"].to_numpy()
        label, band_label = _label_horizon(horizon)
        band = [rows[key] for key in ("price_lower_80", "price_upper_80") if prices and key in rows]
        if len(band) == 2 and np.isfinite(band).any():
            axes.fill_between(dates, band[0], band[1], color=color, alpha=0.16, linewidth=0, label=band_label)
        draw_line(axes, dates, rows[f"{prefix}forecast"].to_numpy(), color=color, linestyle=dashes, linewidth=1.5,
                  label=label, marker="o" if len(dates) < _FEW else None, markersize=5)  # fmt: skip
    truth = forecasts[forecasts["horizon"].isin([1, last])].drop_duplicates("date")
    days = truth["date"].to_numpy()
    draw_line(axes, days, truth[f"{prefix}truth"].to_numpy(), color=INK, linewidth=1.5, label="truth",
              marker="D" if len(days) < _FEW else None, markersize=5)  # fmt: skip
    name = str(forecasts["target"].iloc[0])
    title = name.removeprefix("log_") if prices else name
    style_axes(axes, x="", y="price" if prices else "target units", title=plain_label(title))
    _format_date_axis(axes, days)


def _format_date_axis(axes: "Axes", days: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    if days[-1] - days[0] <= np.timedelta64(8, "D"):  # a locator would label hours
        axes.set_xticks(days, np.datetime_as_string(days, unit="D").tolist())
        return
    locator = AutoDateLocator(minticks=4, maxticks=9)  # type: ignore[no-untyped-call]  # untyped in matplotlib
    axes.xaxis.set_major_locator(locator)
    # Year, month, day; hours, minutes and seconds do not occur.
    formats = ["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S.%f"]
    zeros = ["", *formats[:-1]]
    formatter = ConciseDateFormatter(  # type: ignore[no-untyped-call]  # untyped in matplotlib
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


def draw_coverage(levels: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure | None":
    """Draw the empirical against the nominal coverage; calibrated intervals lie on the diagonal.

    `levels` is `RunFiles.interval_levels`.
    """
    if not levels:
        return None
    figure = new_figure(3.3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle="--", label="calibrated")
    styles = {"scaled": (BLUE, "o", "-", "scaled units"), "price": (VERMILLION, "s", ":", "prices")}
    for units, by_unit in levels.items():
        color, marker, dashes, label = styles[units]
        shown = [level for level in by_unit if level["overall"] is not None]
        x, y = [level["nominal"] for level in shown], [level["overall"] for level in shown]
        axes.plot(x, y, color=color, marker=marker, markersize=7, linestyle=dashes, linewidth=1.2, label=label)
    style_axes(axes, x="nominal coverage", y="empirical coverage", title="Coverage of the forecast intervals")
    nominal = sorted({level["nominal"] for by_unit in levels.values() for level in by_unit})
    axes.set_xticks(nominal, [f"{level:.0%}" for level in nominal])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_xlim(min(0.4, nominal[0] - 0.1), 1.0)
    axes.set_ylim(0, 1.03)
    add_legend(axes, 3)
    return figure


def draw_adjacency(adjacency: pd.DataFrame) -> "Figure":
    """Draw the mean adjacency as a heat map; row nodes receive from column nodes."""
    count = len(adjacency)
    figure = new_figure(6.4)
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(adjacency.to_numpy()), cmap="cividis", interpolation="nearest")
    step = -(-count // MOST_NAMES)
    indices = range(0, count, step)
    names = [plain_label(adjacency.columns[index].replace("_", " ")) for index in indices]
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
