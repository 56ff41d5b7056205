"""Plots of a run, drawn from its files and written as PNG."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pgat_fast.report.figure_style import new_figure, to_png
from pgat_fast.report.forecast_figures import (
    draw_adjacency,
    draw_adversarial_errors,
    draw_coverage,
    draw_error_by_horizon,
    draw_forecasts,
)
from pgat_fast.report.run_files import RunFiles, read_run
from pgat_fast.report.training_figures import draw_learning_rate, draw_losses, draw_memory
from pgat_fast.utils.io import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "plots"


def write_plots(run: Path) -> list[Path]:
    """Write the plots of the run in the folder `run` to `plots/NAME.png` there; return the paths.

    The names are the keys of `PLOTS`. Plots without data are left out. Each file is written atomically.

    Raises ConfigError without matplotlib, DataError if `run` is not a run or a file of it is damaged, OSError if a plot
    cannot be written.
    """
    new_figure(1.0)  # without matplotlib, fail before reading files
    paths = []
    for name, figure in draw_plots(read_run(run)):
        path = run / FOLDER / f"{name}.png"
        write_atomically(path, to_png(figure))
        paths.append(path)
    return paths


def draw_plots(run: RunFiles) -> "Iterator[tuple[str, Figure]]":
    """Yield name and figure of every plot for which the run has data, one at a time to save memory."""
    for name, draw in PLOTS.items():
        figure = draw(run)
        if figure is not None:
            yield name, figure


def _draw_adversarial(run: RunFiles) -> "Figure | None":
    if not run.results:
        return None
    clean = run.results["test"]["scaled"].get("model", {}).get("overall", {}).get("rmse")
    return draw_adversarial_errors(clean, run.results["adversarial"].get("scenarios", {}))


PLOTS: "dict[str, Callable[[RunFiles], Figure | None]]" = {
    "forecasts": lambda run: None if run.forecasts is None else draw_forecasts(run.forecasts),
    "error_by_horizon": lambda run: draw_error_by_horizon(run.results["test"]["by_horizon"]) if run.results else None,
    "interval_coverage": lambda run: draw_coverage(run.interval_levels),
    "adversarial": _draw_adversarial,
    "losses": lambda run: draw_losses(
        run.epochs, run.metrics, run.results.get("initial_validation_loss"), run.best_epoch
    ),
    "learning_rate": lambda run: draw_learning_rate(run.epochs),
    "memory": lambda run: draw_memory(run.memory, run.memory_limits),
    "adjacency": lambda run: None if run.adjacency is None else draw_adjacency(run.adjacency),
}
"""Function that draws each plot, by its file name without `.png`; it returns None without data."""
