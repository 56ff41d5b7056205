"""The tables and plots of the README, made of the committed results.

    pgat-fast bench report            # rewrites README.md between its markers, and bench/results/plots/
    pgat-fast bench report --check    # exit code 1 where README.md says something else than the results

A table of the README stands between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bench.compare import KIND, RESULTS, ROOT
from bench.processes import Record
from bench.ratios import Ratio
from pgat_fast.errors import DataError
from pgat_fast.files import write_atomically

README: Final = ROOT / "README.md"
PLOTS: Final = RESULTS / "plots"
_MARKED: Final = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def load(name: str) -> Record:
    """A committed result."""
    found: Record = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def combiner_of(record: Record) -> str:
    """Of the configuration that a result's command names."""
    return "hierarchical" if "celestial_enhanced" in record["command"] else "batched"


def table(head: list[str], rows: list[list[str]]) -> str:
    """In markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# --- tables -----------------------------------------------------------------------------------------------------------


def reference_steps() -> str:
    """Whole training steps of the reference as torch comes."""
    rows = []
    for path in sorted(RESULTS.glob("step_cpu_*.json"), key=lambda path: ("celestial" in path.stem, path.stem)):
        record = load(path.stem)
        for result in record["results"]:
            seconds, memory = result["step_seconds"]["median"], result["peak_memory_gib"]
            rows.append(
                [f"combiner {combiner_of(record)}", str(record["batch"]), f"{seconds:.2f}", f"{memory:.2f} GiB"]
            )
    head = ["`backend: reference`", "batch", "seconds a step (median)", "peak memory above the import"]
    return table(head, rows)


def fast_steps(suffix: str = "") -> str:
    """Whole training steps of all backends, on the machine whose files end with `suffix`."""
    rows = []
    for name in ("batched_batch1", "batched_batch4", "hierarchical_batch1"):
        path = RESULTS / f"fast_step_{name}{suffix}.json"
        if not path.exists():
            continue
        record = load(path.stem)
        for result in record["results"]:
            times = result.get("times_less_than_first", {"step_seconds": 1, "peak_memory_gib": 1})
            rows.append(
                [
                    f"{combiner_of(record)}, {record['batch']}",
                    f"`{result['backend']}`",
                    f"{result['step_seconds']['median']:.2f}",
                    f"{times['step_seconds']:.1f}",
                    f"{result['peak_memory_gib']:.2f} GiB",
                    f"{times['peak_memory_gib']:.1f}",
                ]
            )
    head = ["combiner, batch", "backend", "seconds a step", "less than the reference"]
    return table([*head, "peak memory above the import", "less"], rows)


def accuracy() -> str:
    """What each precision is off by."""
    (errors,) = (found["errors"] for found in load("accuracy")["errors"].values())
    rows = [[f"`{name}`", f"{error['forecast']:.1e}", f"{error['gradients']:.1e}"] for name, error in errors.items()]
    return table(["backend, precision", "forecast", "gradients"], rows)


def comparison() -> str:
    """The newest committed comparison."""
    found = [record for path in RESULTS.glob("*.json") if (record := load(path.stem)).get("kind") == KIND]
    newest = max(found, key=lambda record: str(record["machine"]["date"]))
    rows = []
    for result in newest["results"]:
        times = result.get("times_faster")
        rows.append(
            [
                f"`{result['backend']}`",
                f"{1e3 * result['step_seconds']['median']:.0f} ms",
                "1" if times is None else str(Ratio(times["estimate"], times["low"], times["high"])),
                f"{1024 * result['peak_memory_gib']:.0f} MiB",
                f"{result['saved_for_backward_bytes'] / 1e6:.2f} MB",
            ]
        )
    return table(["backend", "a step", "times faster (95 %)", "peak memory", "saved for backward"], rows)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "reference_steps": reference_steps,
    "fast_steps": fast_steps,
    "fast_steps_zen4": lambda: fast_steps("_zen4"),
    "accuracy": accuracy,
    "comparison": comparison,
}


def rewritten(readme: str) -> str:
    """The README with all tables of today's results. Raises DataError where it asks for one that there is not."""

    def replaced(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        if name not in TABLES:
            raise DataError(f"README.md asks for a table {name}: there are {', '.join(TABLES)}")
        return f"{opening}\n{TABLES[name]()}\n{closing}"

    return _MARKED.sub(replaced, readme)


# --- plots ------------------------------------------------------------------------------------------------------------


def plots(folder: Path) -> list[Path]:
    """Draw them; the same bytes for the same results."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    style = {"svg.hashsalt": "pgat_fast", "svg.fonttype": "none", "font.size": 9}

    def save(figure: Any, name: str) -> None:
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)
        written.append(path)

    with mpl.rc_context(style):
        figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
        for ax, name in zip(axes, ("batched_batch1", "hierarchical_batch1"), strict=True):
            record = load(f"fast_step_{name}")
            names = [result["backend"] for result in record["results"]]
            times = [result.get("times_less_than_first", {}).get("step_seconds", 1.0) for result in record["results"]]
            ax.barh(names, times, color=["#999999" if name.startswith("reference") else "#3366aa" for name in names])
            ax.bar_label(ax.containers[0], fmt="%.1f", padding=2)
            ax.set_xlim(0, 1.15 * max(times))
            ax.invert_yaxis()
            ax.set_title(f"combiner {combiner_of(record)}, batch 1")
            ax.set_xlabel("times faster, a training step")
        save(figure, "speed")

        figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
        for combiner in ("batched", "hierarchical"):
            record = load(f"combiner_{combiner}")
            for result in record["results"]:
                peak = record["matrix_peak"][result["precision"]]["flop_per_second"]
                label = f"{combiner}, on {peak / 1e9:.0f} GFLOP/s"  # of the machine: the two are not the same
                days = [size["steps"] for size in result["sizes"]]
                axes[0].plot(days, [size["seconds"]["median"] for size in result["sizes"]], "o-", label=label)
                axes[1].plot(days, [1024 * size["peak_memory_gib"] for size in result["sizes"]], "o-", label=label)
        for ax, what in zip(axes, ("seconds, forward and backward", "MiB above the import"), strict=True):
            ax.set_xlabel("days of history")
            ax.set_ylabel(what)
            ax.set_ylim(0)
            ax.legend(fontsize=7)
        save(figure, "history")
    return written


def run(args: argparse.Namespace) -> int:
    """`pgat-fast bench report`: rewrite README.md and the plots, or say whether it is as it would be."""
    before = README.read_text()
    after = rewritten(before)
    if args.check:
        print("README.md says what the results say" if after == before else "README.md is older than the results")
        return int(after != before)
    if after != before:
        write_atomically(README, after.encode())
    for path in plots(PLOTS):
        print(path.relative_to(ROOT), file=sys.stderr)
    return 0
