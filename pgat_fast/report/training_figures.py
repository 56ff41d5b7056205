"""Figures of how training went: losses, learning rate, memory."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from pgat_fast.report.figure_style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERMILLION,
    Array,
    draw_line,
    legend_above,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]


def loss_curves(
    epochs: Sequence[Record], metrics: Sequence[Record], initial: float | None, best_epoch: int | None
) -> "Figure | None":
    """Training and validation loss over the epochs, the running mean of the training loss within them."""
    steps = [line for line in metrics if line.get("stage") == "train"]
    if not epochs and not steps:
        return None
    x_epochs, x_steps, unit = _positions(epochs, steps, metrics)
    figure = new_figure(3.5)
    axes = figure.subplots()
    if steps:
        draw_line(axes, x_steps, column(steps, "loss"), color=VERMILLION, linewidth=0.8, alpha=0.55,
              label="training, mean of the epoch so far")  # fmt: skip
    marker = "o" if len(epochs) <= 30 else None
    draw_line(axes, x_epochs, column(epochs, "train_loss"), color=VERMILLION, linewidth=1.6, marker=marker,
              markersize=3.5, label="training, whole epoch")  # fmt: skip
    validation = column(epochs, "validation_loss")
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
    style(axes, x=unit, y="loss (scaled units)", title="Losses")
    legend_above(axes, 3)
    axes.set_xlim(left=0)
    _whole_ticks(axes)
    return figure


def learning_rate(epochs: Sequence[Record]) -> "Figure | None":
    """The learning rate of each epoch, a step curve: it is constant within one."""
    rates = column(epochs, "learning_rate")
    if not np.isfinite(rates).any():
        return None
    figure = new_figure(2.3)
    axes = figure.subplots()
    numbers = column(epochs, "epoch")
    axes.step(np.append(numbers[0] - 1, numbers), np.append(rates[0], rates), where="pre", color=BLUE, linewidth=1.8)
    style(axes, x="epoch", y="learning rate", title="Learning rate")
    axes.set_xlim(numbers[0] - 1, numbers[-1])
    axes.set_ylim(0, 1.08 * float(np.nanmax(rates)))
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
    axes.yaxis.get_offset_text().set(color=MUTED, fontsize=8.5)
    _whole_ticks(axes)
    return figure


def memory_over_time(memory: Sequence[Record], limits: Record) -> "Figure | None":
    """Process and device memory over the time that processes of the run were at work, and their limits.

    `limits`: `limit_gib` and `device_limit_gib`, None where there is none.
    """
    if not memory:
        return None
    hours, starts = working_hours(memory)
    factor, unit = 1, "hours"
    for per_hour, name in ((60, "minutes"), (3600, "seconds")):
        if hours[-1] * per_hour < 180:
            factor, unit = per_hour, name
    x = hours * factor
    on_device = bool(np.isfinite(column(memory, "device_allocated_gib")).any())
    figure = new_figure(3.0 if not on_device else 5.0)
    panels = figure.subplots(2 if on_device else 1, 1, sharex=True, squeeze=False)[:, 0]
    _memory_panel(panels[0], x, memory, "Process", BLUE, limits.get("limit_gib"), [
        ("process_gib", "in use", "-"), ("process_peak_gib", "highest so far", ":")
    ])  # fmt: skip
    if on_device:
        _memory_panel(panels[1], x, memory, "Device", GREEN, limits.get("device_limit_gib"), [
            ("device_allocated_gib", "allocated", "-"), ("device_reserved_gib", "reserved", "--"),
            ("device_peak_allocated_gib", "highest so far", ":"),
        ])  # fmt: skip
    for number, axes in enumerate(panels):
        for start in x[starts[1:]]:
            axes.axvline(start, color=PURPLE, linewidth=1.0, linestyle="-.", label="resumed")
        _distinct_legend(axes)
        last = number == len(panels) - 1
        axes.set_xlabel(f"{unit} at work (time between two processes left out)" if last and len(starts) > 1
                        else f"{unit} since the start" if last else "")  # fmt: skip
    return figure


def working_hours(lines: Sequence[Record]) -> tuple[Array, list[int]]:
    """Hours of work at each line of metrics.jsonl, [n], and the indices of the lines that a process began with.

    The time between the last line of one process and the first of the next does not count. A line whose time cannot
    be read counts as written with the one before it.
    """
    hours: list[float] = []
    starts: list[int] = []
    total = 0.0
    before: float | None = None
    for index, line in enumerate(lines):
        now = before
        with suppress(ValueError):
            now = datetime.fromisoformat(str(line.get("time"))).timestamp()
        begins = line.get("stage") == "start" or index == 0
        if begins:
            starts.append(index)
        elif now is not None and before is not None:
            total += max(0.0, now - before) / 3600
        hours.append(total)
        before = now
    return np.array(hours), starts


def column(lines: Sequence[Record], key: str) -> Array:
    """The values of `key`, [lines]; NaN where there is no number."""
    values = [line.get(key) for line in lines]
    return np.array([float(v) if isinstance(v, int | float) and not isinstance(v, bool) else np.nan for v in values])


def _positions(
    epochs: Sequence[Record], steps: Sequence[Record], metrics: Sequence[Record]
) -> tuple[Array, Array, str]:
    """Where the epochs and the train lines lie on the axis, and its label: in epochs where one is known, else steps."""
    numbers, done = column(epochs, "epoch"), column(steps, "step")
    each = next((e["optimizer_steps"] for e in epochs if e.get("complete") and e.get("optimizer_steps")), None)
    if each is None:
        ends = [
            line for line in metrics if line.get("stage") == "validation" and line.get("step") and line.get("epoch")
        ]
        each = ends[0]["step"] / ends[0]["epoch"] if ends else None
    if each is None:
        return numbers, done, "optimizer steps" if not epochs else "epoch"
    if epochs and epochs[-1].get("complete") is False:
        numbers[-1] += epochs[-1]["optimizer_steps"] / each - 1
    return numbers, done / each, "epoch"


def _memory_panel(
    axes: "Axes",
    x: Array,
    memory: Sequence[Record],
    name: str,
    color: str,
    limit: float | None,
    curves: Sequence[tuple[str, str, str]],
) -> None:
    for key, label, dashes in curves:
        draw_line(axes, x, column(memory, key), color=color, linestyle=dashes, linewidth=1.6, label=label)
    if limit is not None:
        axes.axhline(limit, color=VERMILLION, linewidth=1.4, label=f"limit {limit:g} GiB")
    style(axes, x="", y="GiB", title=f"{name} memory")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)


def _distinct_legend(axes: "Axes") -> None:
    """One entry for the lines that mark resumes, however many there are."""
    seen: set[str] = set()
    for line in axes.get_lines():
        label = str(line.get_label())
        if label in seen:
            line.set_label("_")
        seen.add(label)
    legend_above(axes, 5)


def _whole_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
