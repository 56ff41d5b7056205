"""Pieces of HTML. Text becomes `Html` through `text` alone, which escapes it: nothing else may enter a page."""

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NewType

Html = NewType("Html", str)

DASH = "\N{EN DASH}"
"""Stands for a figure that is not known."""

_FIGURE = re.compile(r"[-+\N{MINUS SIGN}]?[\d,]+(\.\d+)?(e[-+]\d+)?( ?(%|s|min|GiB|h \d\d min))?")


def text(value: object) -> Html:
    """`value` as text that no browser takes for markup.

    Control characters, those that turn the direction of writing, and halves of characters become the replacement
    character.
    """
    printable = "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(character)[0] == "C" and character not in "\n\t"
        else character
        for character in str(value)
    )
    return Html(html.escape(printable))


def join(parts: Iterable[Html]) -> Html:
    return Html("\n".join(part for part in parts if part))


def paragraph(content: object, kind: str = "") -> Html:
    return Html(f"<p{_class(kind)}>{text(content)}</p>")


class Section(NamedTuple):
    """A part of the page with a heading, that `#identity` leads to."""

    identity: str
    title: str
    content: Html

    def html(self) -> Html:
        return Html(f'<section id="{self.identity}">\n<h2>{text(self.title)}</h2>\n{self.content}\n</section>')

    def link(self) -> Html:
        return Html(f'<a href="#{self.identity}">{text(self.title.partition(":")[0])}</a>')


def section(identity: str, title: str, *parts: Html) -> Section:
    return Section(identity, title, join(parts))


def prose(content: str, kind: str = "") -> Html:
    """A paragraph in which what stands between backticks is a command."""
    parts = [f"<code>{text(part)}</code>" if index % 2 else text(part) for index, part in enumerate(content.split("`"))]
    return Html(f"<p{_class(kind)}>{''.join(parts)}</p>")


def heading(title: object) -> Html:
    return Html(f"<h3>{text(title)}</h3>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], note: str = "") -> Html:
    """A table whose first column names the rows; the others are right-aligned where all their cells are figures."""
    body = [[_cell(value) for value in row] for row in rows]
    figures = [bool(body) and all(row[index][1] for row in body) for index in range(len(header))]
    head = "".join(f"<th{_class('n' if figures[i] else '')}>{text(name)}</th>" for i, name in enumerate(header))
    lines = [
        "<tr>"
        + "".join(
            f"<th>{content}</th>" if index == 0 else f"<td{_class('n' if figures[index] else '')}>{content}</td>"
            for index, (content, _) in enumerate(row)
        )
        + "</tr>"
        for row in body
    ]
    caption = f'<p class="note">{text(note)}</p>\n' if note else ""
    return Html(
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(lines)
        + f"\n</tbody></table></div>\n{caption}"
    )


def facts(pairs: Mapping[str, object] | Iterable[tuple[str, object]]) -> Html:
    """A list of names and what they are."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    lines = "\n".join(f"<div><dt>{text(name)}</dt><dd>{_cell(value)[0]}</dd></div>" for name, value in items)
    return Html(f'<dl class="facts">\n{lines}\n</dl>') if lines else Html("")


def badge(content: object, kind: str) -> Html:
    return Html(f'<span class="badge {kind}">{text(content)}</span>')


def folded(title: object, content: Html) -> Html:
    """Content that a click shows."""
    return Html(f"<details>\n<summary>{text(title)}</summary>\n{content}\n</details>")


def moment(time: object) -> Html:
    """A point in time, ISO 8601, to the second; UTC where it says so."""
    shown = str(time).replace("T", " ")
    zone = " UTC" if shown.endswith(("+00:00", "Z")) else ""
    return Html(f"<time>{text(shown[:19] + zone)}</time>")


def code(content: str) -> Html:
    return Html(f"<pre>{text(content)}</pre>")


def figure(svg: str, caption: str) -> Html:
    """An SVG element that this program has made, with what it shows."""
    return Html(f'<figure>\n<div class="scroll">{svg}</div>\n<figcaption>{text(caption)}</figcaption>\n</figure>')


def number(value: object, digits: int = 4) -> str:
    """`value` with `digits` significant digits, as few as it needs of them behind the point; a dash for None."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 9:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def signed(value: object) -> str:
    """A skill or a change, with its sign and four digits behind the point; a dash for None."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}") if isinstance(value, float) else number(value)


def percent(value: object, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %" if isinstance(value, float) else number(value)


def aligned(values: Sequence[object], digits: int = 5) -> list[str]:
    """`values` with as many digits behind the point as the largest of them needs to have `digits` in all."""
    sizes = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value)]
    largest = max(sizes, default=0.0)
    if not 1e-3 <= largest < 1e9:
        return [number(value, digits) for value in values]
    places = max(0, digits - 1 - math.floor(math.log10(largest)))
    return [f"{v:,.{places}f}" if isinstance(v, float) and math.isfinite(v) else number(v) for v in values]


def duration(seconds: object) -> str:
    """Seconds as a person says them."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 60:
        return f"{number(float(seconds), 3)} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


def _cell(value: object) -> tuple[str, bool]:
    """A cell and whether it is a figure, or empty. Strings count: the caller has formatted them."""
    if isinstance(value, _Raw):
        return value.html, False
    shown = value if isinstance(value, str) else number(value)
    return text(shown), not shown or shown == DASH or _FIGURE.fullmatch(shown) is not None


class _Raw:
    """Markup that stands in a table cell."""

    def __init__(self, content: Html) -> None:
        self.html = content


def raw(content: Html) -> Any:
    """Let `content` stand in a table cell or a list of facts as it is."""
    return _Raw(content)


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
