"""Plots of `docs/performance.md`, from the committed results."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.figures import ZEN4, ZEN5, combiner_of, growth_results
from bench.result_files import RESULTS, ROOT, load

FOLDER: Final = ROOT / "docs" / "plots"

LOOKS: Final = {
    "reference": "#999999",
    "torch": "#3366aa",
    "triton": "#aa6633",
    "plain": "#3366aa",
    "kernels": "#aa6633",
}
"""Backend -> colour."""


def colour(name: str) -> str:
    """Return the colour of a backend, ignoring the words after its name."""
    return LOOKS[name.split(":")[0]]


def speed(plt: Any) -> Any:
    """Draw bars: how many times faster than the reference, on two machines."""
    names = ("batched_batch1", "hierarchical_batch1")
    figure, axes = plt.subplots(2, 2, figsize=(8, 4.8), layout="constrained")
    for row, machine in zip(axes, (ZEN5, ZEN4), strict=True):
        for ax, name in zip(row, names, strict=True):
            record = load(f"step_{name}", machine)
            results = [result for result in record["results"] if "error" not in result]
            backends = [result["backend"] for result in results]
            faster = [result.get("times_less_than_first", {}).get("step_seconds", 1.0) for result in results]
            ax.barh(backends, faster, color=[colour(backend) for backend in backends])
            ax.bar_label(ax.containers[0], fmt="%.1f", padding=2)
            ax.set_xlim(0, 1.15 * max(faster))
            ax.invert_yaxis()
            peak = record["matrix_peak"]["highest"]["flop_per_second"]
            ax.set_title(f"{combiner_of(record)}, batch 1, on {peak / 1e9:.0f} GFLOP/s", fontsize=8)
    for ax in axes[1]:
        ax.set_xlabel("times faster, a training step")
    return figure


def history(plt: Any) -> Any:
    """Draw lines: time and memory of the combiners against the days of history."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for combiner in ("batched", "hierarchical"):
        record = load(f"combiner_{combiner}")
        for result in record["results"]:
            peak = record["matrix_peak"][result["precision"]]["flop_per_second"]
            label = f"{combiner}, on {peak / 1e9:.0f} GFLOP/s"  # the machine's peak: the two machines differ
            days = [size["steps"] for size in result["sizes"]]
            axes[0].plot(days, [size["seconds"]["median"] for size in result["sizes"]], "o-", label=label)
            axes[1].plot(days, [1024 * size["peak_memory_gib"] for size in result["sizes"]], "o-", label=label)
    for ax, what in zip(axes, ("seconds, forward and backward", "MiB above the import"), strict=True):
        ax.set_xlabel("days of history")
        ax.set_ylabel(what)
        ax.set_ylim(0)
        ax.legend(fontsize=7)
    return figure


def growth(plt: Any) -> Any:
    """Draw time and memory against every quantity that grows, on logarithmic scales."""
    units = {"history": "days of history", "batch": "windows of a batch", "bodies": "bodies"}
    figure, axes = plt.subplots(2, len(units), figsize=(8, 4.6), layout="constrained", sharex="col")
    for result in growth_results():
        column = list(units).index(result["what"])
        values = result["seconds"], [1024 * gib for gib in result["memory"]]
        for ax, y, exponent in zip(axes[:, column], values, result["exponents"], strict=True):
            label = f"{result['backend']}: {'?' if exponent is None else f'{exponent:.1f}'}"
            ax.plot([size for size, _ in result["points"]], y, "o-", label=label, color=colour(result["backend"]))
        axes[1][column].set_xlabel(units[result["what"]])
    for row, what in zip(axes, ("seconds", "MiB above the import"), strict=True):
        row[0].set_ylabel(what)
        for ax in row:
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.xaxis.set_major_formatter("{x:.0f}")
            ax.legend(fontsize=7, title="exponent", title_fontsize=7)
    return figure


def roofline(plt: Any) -> Any:
    """Draw FLOP/s against FLOPs per byte below the roofs, for every machine on which it was measured."""
    paths = sorted(RESULTS.glob("*/*/roofline.json"))
    figure, axes = plt.subplots(1, len(paths), figsize=(8, 3.6), layout="constrained", squeeze=False)
    for ax, path in zip(axes[0], paths, strict=True):
        record = json.loads(path.read_text(encoding="utf-8"))
        memory, points = record["bandwidth"]["bytes_per_second"], record["points"]
        ends = [0.5 * min(point["flops"] / point["bytes"] for point in points)]
        ends.append(2 * max(point["flops"] / point["bytes"] for point in points))
        for name, peak in record["matrix_peak"].items():
            roof = peak["flop_per_second"]
            ax.plot(
                [ends[0], roof / memory, ends[1]],
                [ends[0] * memory, roof, roof],
                "-",
                color="black",
                lw=0.8,
                label=f"roof, {name}",
            )
        labels = set()
        for point in points:
            combiner = point["what"] == "combiner"
            label = point["by"] if combiner else f"operators, {point['by']}"
            ax.plot(
                point["flops"] / point["bytes"],
                point["flops"] / point["seconds"],
                "D" if combiner else "o",
                color=colour(point["by"]),
                label=None if label in labels else f"combiners, {label}" if combiner else label,
            )
            labels.add(label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("FLOPs for every byte that must be moved")
        ax.set_ylabel("FLOP/s")
        ax.set_title(record["machine"]["gpu"] or record["machine"]["processor"], fontsize=8)
        ax.legend(fontsize=7)
    return figure


DRAWINGS: Final = {"speed": speed, "history": history, "scaling": growth, "roofline": roofline}
"""Name of a plot -> the function that draws it."""


@contextmanager
def _pyplot() -> Iterator[Any]:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    # Write the same bytes for the same results.
    with mpl.rc_context({"svg.hashsalt": "pgat_fast", "svg.fonttype": "none", "font.size": 9}):
        yield pyplot


def plots(folder: Path) -> list[Path]:
    """Draw all plots into `folder`, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with _pyplot() as plt:
        for name, draw in DRAWINGS.items():
            figure = draw(plt)
            paths.append(folder / f"{name}.svg")
            figure.savefig(paths[-1], metadata={"Date": None, "Creator": None})
            plt.close(figure)
    return paths
