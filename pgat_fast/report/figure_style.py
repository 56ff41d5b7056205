"""Style of all figures, and their conversion to PNG and SVG. Importing this module does not load matplotlib.

The colours can be told apart with any colour vision on white (after Okabe & Ito, Color Universal Design, 2008, without
the yellow and light tones, with a darker pink). In SVG each becomes a CSS variable, so that the page can use a lighter
tone of the same hue on a dark background.
"""

import io
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgat_fast.errors import ConfigError
from pgat_kernels.process_settings import SharedSetting

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
"""CSS variable that replaces each colour in SVG."""

FORECASTERS = {
    "model": ("model", BLUE, "-", "o"),
    "last_value": ("last value", VERMILLION, "--", "s"),
    "zero_return": ("zero return", GREEN, "-.", "^"),
    "drift": ("drift", PURPLE, ":", "D"),
}
"""Label, colour, line style and marker of each forecaster, by its name in the results."""

WIDTH = 7.4
"""Width of every figure in inches. At 100 dots per inch, text in figures is as large as text in the page."""

Array = NDArray[np.float64]


def new_figure(height: float) -> "Figure":
    """Return an empty figure of `WIDTH` x `height` inches that is not registered with pyplot.

    Raises ConfigError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError('plots need matplotlib: pip install "pgat-fast[plots]"') from error
    return Figure(figsize=(WIDTH, height), layout="constrained")


def style_axes(axes: "Axes", *, x: str, y: str, title: str | None = None) -> None:
    """Set labels, title, spines, ticks and grid of `axes`."""
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


def add_legend(axes: "Axes", columns: int = 4, order: Sequence[str] = ()) -> None:
    """Add a legend between title and axes; `order` lists the labels, column by column."""
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
    """Draw a line through [n] values, with gaps where they are not finite; isolated values become points."""
    y = np.where(np.isfinite(y), y, np.nan)
    axes.plot(x, y, **settings)
    finite = np.isfinite(y)
    has_neighbour = np.zeros_like(finite)
    has_neighbour[1:] |= finite[:-1]
    has_neighbour[:-1] |= finite[1:]
    isolated = finite & ~has_neighbour
    if isolated.any() and not settings.get("marker"):
        settings = settings | {"linestyle": "none", "marker": "o", "markersize": 3.5, "label": None}
        axes.plot(np.asarray(x)[isolated], y[isolated], **settings)


def plain_label(text: object) -> str:
    """Return `text` on one line, at most 41 characters long, without mathtext."""
    printable = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text)
    )
    short = printable if len(printable) <= 40 else f"{printable[:38]}..."
    return short.replace("$", r"\$")


def to_png(figure: "Figure") -> bytes:
    """Return the figure as PNG, on white, with 150 dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


@cache
def _svg_settings() -> SharedSetting[dict[str, Any]]:
    """Return matplotlib's settings for SVG, which apply to the whole process: text as text, reproducible ids."""
    from matplotlib import rcParams

    return SharedSetting(
        lambda: {name: rcParams[name] for name in ("svg.fonttype", "svg.hashsalt")},
        lambda values: rcParams.update(values),
    )


def to_svg(figure: "Figure", name: str) -> str:
    """Return the figure as an `<svg>` element for an HTML page: ids begin with `name`, colours are CSS variables.

    The element has a view box and no size, loads nothing and is reproducible. Its accessible name is the text of the
    element `NAME-caption` of the page.
    """
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with _svg_settings().set_to({"svg.fonttype": "none", "svg.hashsalt": "pgat_fast"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    svg = f'<svg role="img" aria-labelledby="{name}-caption" {box[0]}>' + svg[svg.index(">") + 1 :]
    # The style sheet of the page contains these rules; here they would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', lambda match: f"{match[1]}{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(rf"{colour}\b", f"var({variable})", svg, flags=re.IGNORECASE)
    return svg
