"""Numbers as people write them: decimal point or comma, thousands separators, currency signs. None is guessed."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_SPACES = " \u00a0\u202f\u2009"
_QUOTES = "'\u2019"
_SIGN = (
    r"(?:US\$|A\$|C\$|HK\$|S\$|[$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9\u0e3f\u20bf\u0080]"
    r"|(?:USD|EUR|GBP|CHF|JPY|CNY|INR|CAD|AUD|HKD|SEK|NOK|DKK|PLN|BRL)\b|Rs\.?)"
)
_CURRENCY = re.compile(rf"^{_SIGN}\s*|\s*{_SIGN}$")
_AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2}([.,])\d{3}", re.ASCII)
"""One mark and three digits after it: 1.234 and 1,234 are a decimal fraction in one country, a thousand in another."""


def _pattern(decimal: str) -> re.Pattern[str]:
    grouping = _SPACES + _QUOTES + ("," if decimal == "." else ".")
    mark = re.escape(decimal)
    grouped = rf"[1-9]\d{{0,2}}(?P<mark>[{re.escape(grouping)}])\d{{3}}(?:(?P=mark)\d{{3}})*"
    indian = r"|[1-9]\d?(?:,\d\d)+,\d{3}" if decimal == "." else ""
    whole = rf"(?:{grouped}{indian}|\d+)"
    return re.compile(rf"[+-]?(?:{whole}(?:{mark}\d*)?|{mark}\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


LONGEST = 60
"""Number of characters of a cell that may be a number with marks or signs: longer ones would take long to compare."""

_PATTERNS = {decimal: _pattern(decimal) for decimal in ".,"}
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


class UndecidedNumberError(Exception):
    """The numbers of a file can be read in two ways, or contradict each other: the message gives an example."""

    def __init__(self, message: str, cell: str) -> None:
        super().__init__(message)
        self.cell = cell


class NumberForm(NamedTuple):
    """How the numbers of a file are written."""

    decimal: str
    """`.` or `,`"""
    described: tuple[str, ...] = ()
    """What differs from plain numbers, in words."""


def parse_number(text: str, decimal: str) -> float | None:
    """Return the number in `text`, None if it holds none. Thousands are grouped in threes, all with the same mark."""
    if decimal == "." and _PLAIN.fullmatch(text):
        return float(text)
    if len(text) > LONGEST:
        return None
    text = strip_currency(text)
    if not _PATTERNS[decimal].fullmatch(text):
        return None
    return float("".join(mark for mark in text if mark in "0123456789+-eE" + decimal).replace(decimal, "."))


def strip_currency(text: str) -> str:
    """Return `text` without spaces around it and without a currency sign before or after the number."""
    return _CURRENCY.sub("", text.strip(_SPACES + "\t")).strip(_SPACES)


def number_form(prices: Iterable[str], others: Iterable[str], separator: str, decimal: str | None = None) -> NumberForm:
    """Find out how the numbers of a file are written.

    Args:
        prices: the cells of the four prices.
        others: cells of other columns, which are consulted if the prices do not decide.
        separator: the mark between the fields. Where it is a comma, numbers like 1.234 have a decimal point.
        decimal: the decimal mark, if the user gave it.

    Raises UndecidedNumberError if the cells contradict each other or leave two readings.
    """
    cells = set(prices)
    is_plain = all(map(_PLAIN.fullmatch, cells))
    if (
        decimal is None
        and is_plain
        and (separator == "," or any("." in cell and not _AMBIGUOUS.fullmatch(cell) for cell in cells))
    ):
        # Where the point groups thousands the comma is decimal, and does not separate fields.
        decimal = "."
    if decimal is None:
        decimal = _decide(sorted(cells), others, separator)
    described = ["decimal comma"] if decimal == "," else []
    if decimal == "," or not is_plain:
        numbers = [strip_currency(cell) for cell in cells if parse_number(cell, decimal) is not None]
        grouping = {mark for number in numbers for mark in number if not mark.isalnum() and mark not in "+-" + decimal}
        described += [f"thousands separator {mark!r}" for mark in sorted(grouping)]
        signs = {
            match[0].strip(): cell
            for cell in cells
            if len(cell) <= LONGEST and (match := _CURRENCY.search(cell.strip(_SPACES + "\t")))
        }
        if len(signs) > 1:
            message = f"prices in different currencies, {' and '.join(sorted(signs)[:2])}: convert them to one"
            raise UndecidedNumberError(message, signs[max(signs)])
        described += [f"prices in {sign}" for sign in signs]
    return NumberForm(decimal, tuple(described))


def _decide(prices: Sequence[str], others: Iterable[str], separator: str) -> str:
    decimals, ambiguous = _evidence(prices)
    if not decimals and ambiguous:
        decimals, _ = _evidence(others)
    if not decimals and set(ambiguous) == {"."} and separator == ",":
        return "."
    if len(decimals) == 1:
        return next(iter(decimals))
    if decimals:
        usual, rare = sorted(decimals.values(), key=len, reverse=True)
        message = (
            f"{rare[0]!r} and {usual[0]!r} have different decimal marks: write all numbers alike, or give --decimal"
        )
        raise UndecidedNumberError(message, rare[0])
    if ambiguous:
        mark, text = next(iter(ambiguous.items()))
        readings = f"{text.replace(mark, '.')} or {text.replace(mark, '')}"
        message = f"{text!r} may be {readings}, and no number of the file decides: give --decimal . or --decimal ,"
        raise UndecidedNumberError(message, text)
    return "."


def _evidence(cells: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the cells that show a decimal mark, by mark, and a cell with two readings for each mark of such cells."""
    decimals: dict[str, list[str]] = {}
    ambiguous: dict[str, str] = {}
    for cell in cells:
        if len(cell) > LONGEST:
            continue
        text = strip_currency(cell).rstrip("%")
        marks = {mark: text.count(mark) for mark in ".," if mark in text}
        if not marks or not any(pattern.fullmatch(text) for pattern in _PATTERNS.values()):
            continue
        last = max(marks, key=text.rfind)
        if len(marks) == 1 and marks[last] == 1 and _AMBIGUOUS.fullmatch(text):
            ambiguous.setdefault(last, text)
        elif marks[last] > 1:
            decimals.setdefault("." if last == "," else ",", []).append(text)
        else:
            decimals.setdefault(last, []).append(text)
    return decimals, ambiguous
