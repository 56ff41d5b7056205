"""Text for values: numbers, durations, points in time."""

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

DASH = "\N{EN DASH}"
"""Stands for an unknown value."""

_SMALL_SKILL = 0.01
"""Positive skills below this are reported as `only`."""


def format_number(value: object, digits: int = 4) -> str:
    """Format numbers with `digits` significant digits, integers in full; None as a dash, other values with `str`."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 9:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def format_signed(value: object) -> str:
    """Format a skill or a change with its sign and four decimal places."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}") if isinstance(value, float) else format_number(value)


def format_percent(value: object, digits: int = 1) -> str:
    """Format a fraction as a percentage with `digits` decimal places."""
    return f"{100 * value:.{digits}f} %" if isinstance(value, float) else format_number(value)


def make_aligned_formatter(values: Iterable[object]) -> Callable[[object], str]:
    """Return a format with equally many decimal places for all `values`: the largest gets five significant digits."""
    largest = max((abs(v) for v in values if isinstance(v, float) and math.isfinite(v)), default=0.0)
    if not 1e-3 <= largest < 1e9:
        return lambda value: format_number(value, 5)
    places = max(0, 4 - math.floor(math.log10(largest)))
    return lambda v: f"{v:,.{places}f}" if isinstance(v, float) and math.isfinite(v) else format_number(v)


def format_aligned(values: Sequence[object]) -> list[str]:
    """Format a column of numbers with equally many decimal places."""
    return list(map(make_aligned_formatter(values), values))


def format_duration(seconds: object) -> str:
    """Format seconds as seconds, minutes or hours, whichever suits their size."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return format_number(seconds)
    if seconds < 60:
        return f"{format_number(float(seconds), 3)} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{seconds / 60:.1f} min"


def format_timestamp(time: object) -> str:
    """Format an ISO 8601 timestamp to the second, with `UTC` where it is in UTC."""
    iso = str(time).replace("T", " ")
    return iso[:19] + (" UTC" if iso.endswith(("+00:00", "Z")) else "")


def format_name(name: object) -> str:
    """Format an identifier of the results as words: `last_value` becomes `last value`."""
    return str(name).replace("_", " ")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Flatten nested mappings to names such as `coverage 0.5 overall`, lists to text."""
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        name = f"{prefix} {format_name(key)}".strip()
        if isinstance(value, Mapping):
            leaves |= flatten(value, name)
        else:
            leaves[name] = ", ".join(map(format_number, value)) if isinstance(value, list) else value
    return leaves


def replace_control_characters(text: str) -> str:
    """Replace control characters, bidirectional controls and unpaired surrogates; newlines and tabs stay."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(character)[0] == "C" and character not in "\n\t"
        else character
        for character in text
    )


def describe_skills(skills: Mapping[str, float | None]) -> str:
    """Describe in words how the squared error of the model compares with that of each baseline."""
    better: list[str] = []
    worse: list[str] = []
    for baseline, value in skills.items():
        is_better = value is not None and value > 0
        margin = "error not finite"
        if value is not None:
            only = "only " if 0 < value < _SMALL_SKILL else ""
            direction = "lower" if is_better else "higher"
            margin = f"{only}{100 * abs(value):.3g}\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}{direction}"
        (better if is_better else worse).append(f"{format_name(baseline)} ({margin})")
    clauses = [
        f"{verdict} {f' {conjunction} '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}"
        for verdict, names, conjunction in (("better than", better, "and"), ("no better than", worse, "or"))
        if names
    ]
    return ", ".join(clauses) or "not compared with any baseline"
