"""Plots of a run: which are drawn, what they show, runs with unusual contents."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from pgat_fast.data.bodies import BODIES
from pgat_fast.data.columns import TARGETS
from pgat_fast.errors import ConfigError
from pgat_fast.report.figure_style import INK, MUTED, VARIABLES, draw_line, new_figure, plain_label, to_png, to_svg
from pgat_fast.report.forecast_figures import (
    MOST_PANELS,
    draw_adjacency,
    draw_adversarial_errors,
    draw_error_by_horizon,
    draw_forecasts,
)
from pgat_fast.report.plots import PLOTS, draw_plots, write_plots
from pgat_fast.report.run_files import RunFiles, read_run
from pgat_fast.report.training_figures import draw_learning_rate, draw_losses, draw_memory, measure_running_hours
from pgat_fast.training.run_folder import write_status
from tests.pgat_fast.report.changes import make_unfinished


def lines_of(axes: Axes) -> dict[str, np.ndarray]:
    """Return the y values of the labelled lines by label."""
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in axes.get_lines()}


def forecasts_of(targets: list[str], days: int = 3, horizons: tuple[int, ...] = (1, 2)) -> pd.DataFrame:
    """Return forecasts of 1 for a truth of 2, without prices."""
    rows = [
        (np.datetime64("2026-01-05") + day + horizon, horizon, target, 1.0, 2.0)
        for day in range(days)
        for horizon in horizons
        for target in targets
    ]
    return pd.DataFrame(rows, columns=["date", "horizon", "target", "forecast", "truth"])


def run_of(
    epochs: int = 3,
    windows: int = 10,
    days: int = 4,
    targets: tuple[str, ...] = TARGETS,
    nodes: tuple[str, ...] = BODIES,
    gpu: bool = False,
) -> RunFiles:
    """Return a finished run of these sizes with random numbers, resumed once."""
    random = np.random.default_rng(0)
    dates = np.busday_offset("2025-12-16", np.arange(windows + days), roll="forward")
    rows = [(dates[w + d - 1], d, target) for w in range(windows) for d in range(1, days + 1) for target in targets]
    forecasts = pd.DataFrame(rows, columns=["date", "horizon", "target"])
    for name in ("forecast", "truth", "price_forecast", "price_truth"):
        forecasts[name] = 5000 + random.normal(scale=80, size=len(rows))
    forecasts = forecasts.assign(price_lower_80=forecasts["price_forecast"] - 90, price_upper_80=5100.0)
    curves = {name: random.uniform(1, 2, days).tolist() for name in ("model", "last_value", "zero_return", "drift")}
    shares = [{"overall": level - 0.05, "by_target": {}, "by_horizon": []} for level in (0.5, 0.8, 0.95)]
    levels = [{"nominal": c["overall"] + 0.05, "coverage": c, "mean_width": 1.0} for c in shares]
    error = {"overall": {"rmse": 1.2345}}
    test = {"scaled": {"model": error}, "by_horizon": {"scaled": curves, "price": curves}}
    scenarios = {name: {"status": "ok", "metrics": error} for name in ("gaussian_noise", "feature_dropout")}
    steps = [{"stage": "train", "epoch": 1, "step": step, "loss": random.normal(2.0)} for step in range(1, 5 * epochs)]
    memory = {"process_gib": 1.5, "process_peak_gib": 2.0}
    memory |= (
        {"device_allocated_gib": 6.0, "device_reserved_gib": 12.5, "device_peak_allocated_gib": 11.0} if gpu else {}
    )
    return RunFiles(
        Path("run"),
        results={
            "test": test | {"intervals": {"scaled": levels, "price": levels}},
            "adversarial": {"scenarios": scenarios},
            "initial_validation_loss": 2.5,
            "best_epoch": epochs,
            "epochs": [
                {"epoch": n, "train_loss": 2.0, "validation_loss": 2.0 - n / epochs, "learning_rate": 1e-3 / n,
                 "optimizer_steps": 5, "complete": True} for n in range(1, epochs + 1)
            ],
            "memory": {"limit_gib": 6.0, "device_limit_gib": 40.0 if gpu else None},
        },
        metrics=steps,
        memory=[
            memory | {"time": f"2026-03-02T{hour:02d}:04:05", "stage": "start" if hour == 9 else "train"}
            for hour in range(20)
        ],
        forecasts=forecasts,
        adjacency=pd.DataFrame(random.random((len(nodes), len(nodes))), index=nodes, columns=nodes),
    )  # fmt: skip


def test_finished_run_gets_every_plot_as_png(finished: Path) -> None:
    paths = write_plots(finished)
    assert [path.stem for path in paths] == list(PLOTS)
    assert sorted(path.name for path in (finished / "plots").iterdir()) == sorted(path.name for path in paths)
    for path in paths:
        image = imread(path)
        assert image.shape[1] == 1110  # 7.4 inches of 150 dots
        assert 300 <= image.shape[0] <= 2500
        assert image[..., :3].std() > 0.02, f"{path.name} shows nothing"


@pytest.mark.parametrize(("epochs", "plots"), [(3, ["losses", "learning_rate", "memory"]), (0, ["memory"])])
def test_unfinished_run_gets_training_plots(finished: Path, epochs: int, plots: list[str]) -> None:
    assert [path.stem for path in write_plots(make_unfinished(finished, "stopped", epochs=epochs))] == plots


def spans_of_labels(axes: Axes, side: int) -> list[tuple[float, float]]:
    """Return start and end of the tick labels along the x (0) or y (1) axis, in dots, in order."""
    axis = (axes.xaxis, axes.yaxis)[side]
    spans = []
    for label in axis.get_ticklabels():
        if label.get_text():
            ends = label.get_window_extent().get_points()[:, side]
            if label.get_rotation():  # the boxes of rotated labels may overlap where the labels do not
                half = float(label.get_fontsize()) * axes.figure.dpi / 72 / 2
                ends = np.mean(ends) + np.array([-half, half])
            spans.append((float(ends[0]), float(ends[1])))
    return sorted(spans)


SIZES: list[dict[str, Any]] = [
    {},
    {"epochs": 1, "windows": 1, "days": 1, "targets": ("spread",)},
    {"epochs": 50, "windows": 100, "days": 30, "targets": TARGETS[:2], "gpu": True},
    {
        "nodes": tuple(f"node_of_column_{n}" for n in range(118)),
        "targets": ("$\\frac{", "<b>&amp;", "\u00c5ngstr\u00f6m\n"),
    },
]


@pytest.mark.parametrize("sizes", SIZES)
def test_every_plot_is_drawn_without_overlapping_texts(sizes: dict[str, Any]) -> None:
    figures = dict(draw_plots(run_of(**sizes)))
    assert list(figures) == list(PLOTS)
    for name, figure in figures.items():
        figure.draw_without_rendering()
        for axes in figure.axes:
            for side in (0, 1):
                for (_, end), (start, _) in pairwise(spans_of_labels(axes, side)):
                    assert end <= start + 1, f"{name}: labels of axis {side} overlap"
            legend = axes.get_legend()
            if legend is not None:
                box = legend.get_window_extent()
                assert box.y0 >= axes.get_window_extent().y1 - 8, f"{name}: the legend covers data"
                assert box.x1 <= figure.bbox.x1 + 1, f"{name}: the legend is cut off"
                titles = [text for text in axes.get_children() if isinstance(text, Text) and text.get_text()]
                above = [
                    text.get_window_extent().y0 for text in titles if text.get_text() == axes.get_title(loc="left")
                ]
                assert not above or max(above) >= box.y1 - 3, f"{name}: the legend covers the title"


def test_losses_show_epochs_initial_loss_and_best_epoch() -> None:
    epochs: list[dict[str, Any]] = [
        {"epoch": 1, "train_loss": 3.0, "validation_loss": 2.0, "optimizer_steps": 10, "complete": True},
        {"epoch": 2, "train_loss": None, "validation_loss": 1.0, "optimizer_steps": 10, "complete": True},
        {"epoch": 3, "train_loss": 1.5, "validation_loss": 1.2, "optimizer_steps": 5, "complete": False},
    ]
    steps: list[dict[str, Any]] = [
        {"stage": "train", "epoch": 1, "step": 5, "loss": 3.5},
        {"stage": "train", "epoch": 2, "step": 15},
    ]
    figure = draw_losses(epochs, steps, 4.0, 2)
    assert figure is not None
    (axes,) = figure.axes
    lines = lines_of(axes)
    np.testing.assert_array_equal(lines["validation"], [4, 2, 1, 1.2])
    np.testing.assert_array_equal(lines["training, epoch mean"], [3, np.nan, 1.5])
    np.testing.assert_array_equal(lines["best: epoch 2"], [1])
    np.testing.assert_array_equal(lines["validation before training"], [4, 4])
    places = {str(line.get_label()): line.get_xdata() for line in axes.get_lines()}
    np.testing.assert_array_equal(places["validation"], [0, 1, 2, 2.5])  # the last epoch is half an epoch
    np.testing.assert_array_equal(places["training, running mean"], [0.5, 1.5])


def test_losses_of_first_epoch_are_drawn_over_steps() -> None:
    figure = draw_losses([], [{"stage": "train", "epoch": 1, "step": s, "loss": 1.0} for s in (25, 50)], None, None)
    assert figure is not None
    assert figure.axes[0].get_xlabel() == "optimizer steps"
    assert draw_losses([], [], 1.0, None) is None


def test_learning_rate_is_constant_within_its_epoch() -> None:
    figure = draw_learning_rate([{"epoch": 1, "learning_rate": 0.1}, {"epoch": 2, "learning_rate": 0.2}])
    assert figure is not None
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_array_equal(line.get_xydata(), [[0, 0.1], [1, 0.1], [2, 0.2]])
    assert draw_learning_rate([{"epoch": 1, "learning_rate": None}]) is None


def test_memory_plot_leaves_out_time_between_processes() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    events = [(0, "start"), (1, "train"), (2, "train"), (12, "start"), (13, "train")]
    lines = [
        {"time": (start + timedelta(hours=h)).isoformat(), "stage": stage, "process_gib": 1.0} for h, stage in events
    ]
    hours, starts = measure_running_hours(lines)
    np.testing.assert_allclose(hours, [0, 1, 2, 2, 3])
    assert starts == [0, 3]
    figure = draw_memory(lines, {"limit_gib": 6.0, "device_limit_gib": None})
    assert figure is not None
    assert "limit 6 GiB" in lines_of(figure.axes[0])
    assert list(lines_of(figure.axes[0])).count("resumed") == 1


def test_line_without_readable_time_gets_previous_time() -> None:
    hours, _ = measure_running_hours(
        [{"time": "2026-01-01T00:00:00"}, {"time": "soon"}, {"time": "2026-01-01T02:00:00"}]
    )
    np.testing.assert_allclose(hours, [0, 0, 2])


def test_device_memory_has_separate_panel() -> None:
    figure = draw_memory(run_of(gpu=True).memory, {"limit_gib": None, "device_limit_gib": 40.0})
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Process memory", "Device memory"]
    assert "limit 40 GiB" in lines_of(figure.axes[1])


def test_forecasts_show_first_day_last_day_and_truth() -> None:
    figure = draw_forecasts(forecasts_of(["x", "y"]))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["x", "y"]
    lines = lines_of(figure.axes[0])
    np.testing.assert_array_equal(lines["1 day ahead"], [1, 1, 1])
    np.testing.assert_array_equal(lines["2 days ahead"], [1, 1, 1])
    np.testing.assert_array_equal(lines["truth"], [2, 2, 2, 2])  # each day once, over all horizons
    assert figure.axes[0].get_ylabel() == "target units"


@pytest.mark.parametrize(
    ("days", "labels"),
    [(1, ["2026-01-06"]), (3, ["2026-01-06", "2026-01-07", "2026-01-08"]), (40, ["15 Jan", "Feb 2026"])],
)
def test_date_ticks_are_days(days: int, labels: list[str]) -> None:
    figure = draw_forecasts(forecasts_of(["x"], days=days, horizons=(1,)))
    figure.draw_without_rendering()
    tick_labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert tick_labels == labels if days < 8 else set(labels) <= set(tick_labels)


def test_price_forecasts_have_intervals(trained: Path) -> None:
    forecasts = read_run(trained).forecasts
    assert forecasts is not None
    figure = draw_forecasts(forecasts.assign(price_lower_80=1.0, price_upper_80=2.0))  # too few windows for 80 %
    assert [axes.get_ylabel() for axes in figure.axes] == ["price"] * 4
    bands = [str(band.get_label()) for band in figure.axes[3].collections]
    assert bands == ["2 days ahead, 80 % interval", "1 day ahead, 80 % interval"]


def test_forecasts_are_drawn_in_order_of_dates() -> None:
    figure = draw_forecasts(forecasts_of(["x"])[::-1])
    for line in figure.axes[0].get_lines():
        assert (np.diff(np.asarray(line.get_xdata())) > np.timedelta64(0)).all()


def test_number_of_forecast_panels_is_limited() -> None:
    assert len(draw_forecasts(forecasts_of([f"t{n}" for n in range(118)])).axes) == MOST_PANELS


def test_line_has_gaps_at_nonfinite_values() -> None:
    axes = new_figure(2).subplots()
    draw_line(axes, np.arange(5), np.array([1, 2, np.nan, 3, np.inf]), label="values")
    line, points = axes.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), [1, 2, np.nan, 3, np.nan])
    np.testing.assert_array_equal(points.get_ydata(), [3])  # a line through one value is invisible


def test_missing_error_is_gap_in_error_by_horizon() -> None:
    figure = draw_error_by_horizon({"scaled": {"model": [1.0, None, 2.0], "drift": [1.0, 1.0, 1.0]}, "price": None})
    assert figure is not None
    np.testing.assert_array_equal(lines_of(figure.axes[0])["model"], [1, np.nan, 2])
    assert draw_error_by_horizon({"scaled": None, "price": None}) is None


def test_failed_scenario_is_marked() -> None:
    ok = {"status": "ok", "metrics": {"overall": {"rmse": 2.0}}}
    figure = draw_adversarial_errors(1.0, {"scale": ok, "zero_input": {"status": "failed", "metrics": None}})
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean", "scale", "zero input"]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "failed"]


@pytest.mark.parametrize(("nodes", "named"), [(1, 1), (13, 13), (40, 40), (118, 40)])
def test_number_of_heat_map_labels_is_limited(nodes: int, named: int) -> None:
    weights = np.full((nodes, nodes), np.nan)
    weights[0, 0] = 1.0
    names = [f"node_{n}" for n in range(nodes)]
    figure = draw_adjacency(pd.DataFrame(weights, index=names, columns=names))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) <= named
    assert len(labels) > named / 2
    assert labels[0] == "node 0"


def test_labels_are_short_and_without_mathtext() -> None:
    assert plain_label("$x$\n") == r"\$x\$" + "\N{REPLACEMENT CHARACTER}"
    assert len(plain_label("x" * 1000)) <= 41


def test_drawing_keeps_matplotlib_settings() -> None:
    before = dict(mpl.rcParams)
    figures = draw_plots(run_of())
    to_svg(next(figures)[1], "x")
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def figure_of_two_lines() -> Figure:
    figure = new_figure(2)
    axes = figure.subplots()
    axes.plot([1, 2], color=INK, label="one")
    axes.plot([2, 1], color=MUTED, marker="o", label="two")
    axes.legend()
    return figure


def test_svg_is_reproducible_and_self_contained() -> None:
    svg = to_svg(figure_of_two_lines(), "losses")
    assert svg == to_svg(figure_of_two_lines(), "losses")
    assert svg.startswith('<svg role="img" aria-labelledby="losses-caption" viewBox="0 0 ')
    assert "http" not in svg
    assert "xlink" not in svg
    assert "<style" not in svg
    for colour, variable in list(VARIABLES.items())[:2]:
        assert colour not in svg
        assert f"var({variable})" in svg
    identities = svg.split(' id="')[1:]
    assert identities
    assert all(identity.startswith("losses-") for identity in identities)


def test_png_is_reproducible() -> None:
    assert to_png(figure_of_two_lines()) == to_png(figure_of_two_lines())


def test_missing_matplotlib_error_names_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_status(tmp_path, "running")
    assert write_plots(tmp_path) == []
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r'pip install "pgat-fast\[plots\]"'):
        write_plots(tmp_path)


@pytest.mark.multiprocess
def test_plots_do_not_import_torch(trained: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom pgat_fast.report.plots import draw_plots, read_run\n"
        f"assert list(draw_plots(read_run(Path({json.dumps(str(trained))}))))\nassert 'torch' not in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
