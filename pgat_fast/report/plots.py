"""The plots of a run: drawn from its files, written as PNG beside them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pgat_fast.files import write_atomically
from pgat_fast.report.coverage import coverages
from pgat_fast.report.figure_style import new_figure, to_png
from pgat_fast.report.forecast_figures import (
    adjacency_map,
    adversarial_errors,
    error_by_horizon,
    forecast_and_truth,
    interval_coverage,
)
from pgat_fast.report.run_files import RunFiles, read_run
from pgat_fast.report.training_figures import learning_rate, loss_curves, memory_over_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "plots"


def write_plots(run: Path) -> list[Path]:
    """Draw what the files in the folder `run` allow, as `plots/NAME.png` there; returns the paths.

    The names are those of `PLOTS`. A plot whose data the run does not have (yet) is left out. Each file appears whole.

    Raises ConfigError without matplotlib, DataError where `run` is no run or a file of it is damaged, OSError where a
    plot cannot be written.
    """
    new_figure(1.0)  # without matplotlib, fail before reading anything
    paths = []
    for name, figure in draw_plots(read_run(run)):
        path = run / FOLDER / f"{name}.png"
        write_atomically(path, to_png(figure))
        paths.append(path)
    return paths


def draw_plots(run: RunFiles) -> "Iterator[tuple[str, Figure]]":
    """Name and figure of every plot that can be drawn, one after the other: only one is in memory at a time."""
    for name, draw in PLOTS.items():
        figure = draw(run)
        if figure is not None:
            yield name, figure


def _losses(run: RunFiles) -> "Figure | None":
    return loss_curves(run.epochs, run.metrics, run.results.get("initial_validation_loss"), run.best_epoch)


def _learning_rate(run: RunFiles) -> "Figure | None":
    return learning_rate(run.epochs)


def _forecasts(run: RunFiles) -> "Figure | None":
    return None if run.forecasts is None else forecast_and_truth(run.forecasts)


def _horizon(run: RunFiles) -> "Figure | None":
    return error_by_horizon(run.results["test"]["by_horizon"]) if run.results else None


def _memory(run: RunFiles) -> "Figure | None":
    return memory_over_time(run.memory, run.memory_limits)


def _adversarial(run: RunFiles) -> "Figure | None":
    if not run.results:
        return None
    clean = run.results["test"]["scaled"].get("model", {}).get("overall", {}).get("rmse")
    return adversarial_errors(clean, run.results["adversarial"].get("scenarios", {}))


def _coverage(run: RunFiles) -> "Figure | None":
    return interval_coverage(coverages(run.results["test"]["intervals"])) if run.results else None


def _adjacency(run: RunFiles) -> "Figure | None":
    return None if run.adjacency is None else adjacency_map(run.adjacency)


PLOTS: "dict[str, Callable[[RunFiles], Figure | None]]" = {
    "forecasts": _forecasts,
    "error_by_horizon": _horizon,
    "interval_coverage": _coverage,
    "adversarial": _adversarial,
    "losses": _losses,
    "learning_rate": _learning_rate,
    "memory": _memory,
    "adjacency": _adjacency,
}
"""Name of the file, without `.png` -> what draws it; None where the run has no data for it."""
