"""How all figures look, and turning one into PNG or SVG. matplotlib is loaded when a figure is made, not before.

Colours: seven that people with any colour vision tell apart on white (after Okabe & Ito, Color Universal Design,
2008; the yellow and the light tones are left out, the pink darkened). In SVG each becomes a CSS variable, so that the
page can give a lighter tone of the same hue on a dark background.
"""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgat_fast.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1c2228", "#59636e", "#d7dde3"
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#007f5c", "#a64d8f"

VARIABLES = {
    INK: "--plot-ink",
    MUTED: "--plot-muted",
    GRID: "--plot-grid",
    BLUE: "--plot-blue",
    VERMILLION: "--plot-vermillion",
    GREEN: "--plot-green",
    PURPLE: "--plot-purple",
}
"""Colour -> CSS variable that stands for it in SVG."""

FORECASTERS = {
    "model": ("model", BLUE, "-", "o"),
    "last_value": ("last value", VERMILLION, "--", "s"),
    "zero_return": ("zero return", GREEN, "-.", "^"),
    "drift": ("drift", PURPLE, ":", "D"),
}
"""Name in the results -> label, colour, line and marker: the same in every figure."""

WIDTH = 7.4
"""Inches of every figure. At 100 dots an inch its letters have the size of those of the page."""

Array = NDArray[np.float64]


def new_figure(height: float) -> "Figure":
    """An empty figure, `WIDTH` x `height` inches, that no global state of matplotlib knows of.

    Raises ConfigError where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('plots need matplotlib: pip install "pgat-fast[plots]"') from error
    return Figure(figsize=(WIDTH, height), layout="constrained")


def style(axes: "Axes", *, x: str, y: str, title: str | None = None) -> None:
    """Labels, and a frame that keeps behind the data."""
    axes.set_xlabel(x, color=MUTED, fontsize=9)
    axes.set_ylabel(y, color=MUTED, fontsize=9)
    if title is not None:
        axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8.5)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def legend_above(axes: "Axes", columns: int = 4, order: Sequence[str] = ()) -> None:
    """A legend between title and data, where it can cover neither; labels in `order`, which fills column by column."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        if order:
            pairs = sorted(zip(handles, labels, strict=True), key=lambda pair: order.index(pair[1]))
            handles, labels = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(-0.01, 0.985), ncols=min(columns, len(handles)),
            frameon=False, fontsize=8.5, labelcolor=INK, handlelength=2.2, columnspacing=1.4, borderaxespad=0.2,
        )  # fmt: skip
        if title := axes.get_title(loc="left"):
            rows = -(-len(handles) // columns)
            axes.set_title(title, loc="left", pad=6 + 15 * rows, fontsize=10, fontweight="bold", color=INK)


def draw_line(axes: "Axes", x: Any, y: Array, **settings: Any) -> None:
    """A line over [n] values, broken where they are not finite; values without neighbours show as points."""
    y = np.where(np.isfinite(y), y, np.nan)
    axes.plot(x, y, **settings)
    known = np.isfinite(y)
    beside = np.zeros_like(known)
    beside[1:] |= known[:-1]
    beside[:-1] |= known[1:]
    alone = known & ~beside
    if alone.any() and not settings.get("marker"):
        settings = settings | {"linestyle": "none", "marker": "o", "markersize": 3.5, "label": None}
        axes.plot(np.asarray(x)[alone], y[alone], **settings)


def plain(text: object) -> str:
    """`text` for a figure: one line, short, nothing in it read as a formula."""
    printable = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text)
    )
    short = printable if len(printable) <= 40 else f"{printable[:38]}..."
    return short.replace("$", r"\$")


def to_png(figure: "Figure") -> bytes:
    """The figure on white, 150 dots an inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: "Figure", name: str) -> str:
    """An `<svg>` element to stand in an HTML page beside others: ids begin with `name`, colours are CSS variables.

    It has a view box and no size, loads nothing, and is the same whenever it is made. Its accessible name is the text
    of the element `NAME-caption` of the page.
    """
    import matplotlib

    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = f'<svg role="img" aria-labelledby="{name}-caption" {box[0]}>' + svg[svg.index(">") + 1 :]
    # One style sheet, for the page, says what this one would say to all of the page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', lambda match: f"{match[1]}{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(rf"{colour}\b", f"var({variable})", svg, flags=re.IGNORECASE)
    return svg
