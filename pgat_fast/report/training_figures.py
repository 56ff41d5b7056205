"""Figures of the training: losses, learning rate, memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pgat_fast.report.figure_style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERMILLION,
    Array,
    add_legend,
    draw_line,
    new_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]


def draw_losses(
    epochs: Sequence[Record], metrics: Sequence[Record], initial: float | None, best_epoch: int | None
) -> "Figure | None":
    """Draw training and validation loss of the epochs, and the running mean of the training loss within them."""
    steps = [line for line in metrics if line.get("stage") == "train"]
    if not epochs and not steps:
        return None
    x_epochs, x_steps, unit = _compute_positions(epochs, steps, metrics)
    figure = new_figure(3.5)
    axes = figure.subplots()
    if steps:
        draw_line(axes, x_steps, extract_column(steps, "loss"), color=VERMILLION, linewidth=0.8, alpha=0.55,
              label="training, running mean")  # fmt: skip
    marker = "o" if len(epochs) <= 30 else None
    draw_line(axes, x_epochs, extract_column(epochs, "train_loss"), color=VERMILLION, linewidth=1.6, marker=marker,
              markersize=3.5, label="training, epoch mean")  # fmt: skip
    validation = extract_column(epochs, "validation_loss")
    x, y = x_epochs, validation
    if initial is not None:
        x, y = np.append(0.0, x), np.append(initial, y)
    draw_line(axes, x, y, color=BLUE, linewidth=1.8, marker=marker, markersize=3.5, label="validation")
    if initial is not None:
        axes.axhline(initial, color=MUTED, linewidth=1.0, linestyle=":", label="validation before training")
    best = [index for index, epoch in enumerate(epochs) if epoch.get("epoch") == best_epoch]
    if best and np.isfinite(validation[best[-1]]):
        axes.plot(x_epochs[best[-1]], validation[best[-1]], marker="*", markersize=13, color=BLUE, linestyle="none",
                  markeredgecolor=INK, markeredgewidth=0.8, label=f"best: epoch {best_epoch}")  # fmt: skip
    style_axes(axes, x=unit, y="loss (scaled units)", title="Losses")
    add_legend(axes, 3)
    axes.set_xlim(left=0)
    _set_integer_ticks(axes)
    return figure


def draw_learning_rate(epochs: Sequence[Record]) -> "Figure | None":
    """Draw the learning rate as a step curve: it is constant within an epoch."""
    rates = extract_column(epochs, "learning_rate")
    if not np.isfinite(rates).any():
        return None
    figure = new_figure(2.3)
    axes = figure.subplots()
    numbers = extract_column(epochs, "epoch")
    axes.step(np.append(numbers[0] - 1, numbers), np.append(rates[0], rates), where="pre", color=BLUE, linewidth=1.8)
    style_axes(axes, x="epoch", y="learning rate", title="Learning rate")
    axes.set_xlim(numbers[0] - 1, numbers[-1])
    axes.set_ylim(0, 1.08 * float(np.nanmax(rates)))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
    axes.yaxis.get_offset_text().set(color=MUTED, fontsize=8.5)
    _set_integer_ticks(axes)
    return figure


def draw_memory(memory: Sequence[Record], limits: Record) -> "Figure | None":
    """Draw process and device memory over the running time of the run, with their limits.

    `limits`: `limit_gib` and `device_limit_gib`, None without a limit.
    """
    if not memory:
        return None
    hours, starts = measure_running_hours(memory)
    factor, unit = 1, "hours"
    for per_hour, name in ((60, "minutes"), (3600, "seconds")):
        if hours[-1] * per_hour < 180:
            factor, unit = per_hour, name
    x = hours * factor
    on_device = bool(np.isfinite(extract_column(memory, "device_allocated_gib")).any())
    figure = new_figure(3.0 if not on_device else 5.0)
    panels = figure.subplots(2 if on_device else 1, 1, sharex=True, squeeze=False)[:, 0]
    _draw_memory_panel(panels[0], x, memory, "Process", BLUE, limits.get("limit_gib"), [
        ("process_gib", "in use", "-"), ("process_peak_gib", "peak", ":")
    ])  # fmt: skip
    if on_device:
        _draw_memory_panel(panels[1], x, memory, "Device", GREEN, limits.get("device_limit_gib"), [
            ("device_allocated_gib", "allocated", "-"), ("device_reserved_gib", "reserved", "--"),
            ("device_peak_allocated_gib", "peak", ":"),
        ])  # fmt: skip
    for number, axes in enumerate(panels):
        for start in x[starts[1:]]:
            axes.axvline(start, color=PURPLE, linewidth=1.0, linestyle="-.", label="resumed")
        _add_distinct_legend(axes)
        last = number == len(panels) - 1
        axes.set_xlabel(f"{unit} of running time, without interruptions" if last and len(starts) > 1
                        else f"{unit} since the start" if last else "")  # fmt: skip
    return figure


def measure_running_hours(lines: Sequence[Record]) -> tuple[Array, list[int]]:
    """Return the hours of running time at each log line, [n], and the indices of the first line of each process.

    The time between the last line of one process and the first line of the next is left out. A line without a readable
    time gets the time of the line before it.
    """
    times = pd.to_datetime(pd.Series([line.get("time") for line in lines]), errors="coerce", utc=True, format="ISO8601")
    starts = np.array([line.get("stage") == "start" for line in lines])
    starts[0] = True
    seconds = times.ffill().diff().dt.total_seconds().fillna(0.0).clip(lower=0.0).to_numpy()
    return np.cumsum(np.where(starts, 0.0, seconds)) / 3600, np.flatnonzero(starts).tolist()


def extract_column(lines: Sequence[Record], key: str) -> Array:
    """Return the values of `key`, [lines]; NaN for missing values and other types."""
    values = [line.get(key) for line in lines]
    return np.array([float(v) if isinstance(v, int | float) and not isinstance(v, bool) else np.nan for v in values])


def _compute_positions(
    epochs: Sequence[Record], steps: Sequence[Record], metrics: Sequence[Record]
) -> tuple[Array, Array, str]:
    """Return the x values of epochs and steps and the axis label; steps if the length of an epoch is unknown."""
    numbers, step_numbers = extract_column(epochs, "epoch"), extract_column(steps, "step")
    epoch_length = next((e["optimizer_steps"] for e in epochs if e.get("complete") and e.get("optimizer_steps")), None)
    if epoch_length is None:
        ends = [
            line for line in metrics if line.get("stage") == "validation" and line.get("step") and line.get("epoch")
        ]
        epoch_length = ends[0]["step"] / ends[0]["epoch"] if ends else None
    if epoch_length is None:
        return numbers, step_numbers, "optimizer steps" if not epochs else "epoch"
    if epochs and epochs[-1].get("complete") is False:
        numbers[-1] += epochs[-1]["optimizer_steps"] / epoch_length - 1
    return numbers, step_numbers / epoch_length, "epoch"


def _draw_memory_panel(
    axes: "Axes",
    x: Array,
    memory: Sequence[Record],
    name: str,
    color: str,
    limit: float | None,
    curves: Sequence[tuple[str, str, str]],
) -> None:
    for key, label, dashes in curves:
        draw_line(axes, x, extract_column(memory, key), color=color, linestyle=dashes, linewidth=1.6, label=label)
    if limit is not None:
        axes.axhline(limit, color=VERMILLION, linewidth=1.4, label=f"limit {limit:g} GiB")
    style_axes(axes, x="", y="GiB", title=f"{name} memory")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _add_distinct_legend(axes: "Axes") -> None:
    """Add a legend with one entry for all lines that mark resumes."""
    seen: set[str] = set()
    for line in axes.get_lines():
        label = str(line.get_label())
        if label in seen:
            line.set_label("_")
        seen.add(label)
    add_legend(axes, 5)


def _set_integer_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
