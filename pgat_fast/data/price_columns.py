"""Which columns of a file or a frame hold the date, open, high, low and close: by name."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PRICES = ("open", "high", "low", "close")

_NAMES: dict[str, tuple[str, ...]] = {
    # In order of preference: a file with `date` and `time` has its days in `date`.
    "date": (
        "date", "datetime", "date time", "timestamp", "trade date", "trading date", "trading day", "day", "datum",
        "fecha", "data", "handelstag", "time", "open time", "local time", "gmt time", "unix timestamp", "unix time",
        "unix", "epoch", "ts",
    ),
    "open": (
        "open", "open price", "opening price", "opening", "o", "px open", "erster", "eröffnung", "eröffnungskurs",
        "ouverture", "ouv", "apertura",
    ),
    "high": (
        "high", "high price", "highest", "h", "px high", "hoch", "höchst", "höchstkurs", "tageshoch", "plus haut",
        "haut", "máximo", "massimo",
    ),
    "low": (
        "low", "low price", "lowest", "l", "px low", "tief", "tiefst", "tiefstkurs", "tagestief", "plus bas", "bas",
        "mínimo", "minimo",
    ),
    "close": (
        "close", "close price", "closing price", "closing", "c", "px last", "close/last", "schluss", "schluß",
        "schlusskurs", "schlußkurs", "clôture", "clot", "cierre", "chiusura", "price",
    ),
}  # fmt: skip

UNNAMED = ("", "index", "unnamed: 0", "level 0")
"""Names under which the index of a frame is written."""

_MOST, _LONGEST = 2000, 200
"""Number of columns, and of characters of their names, that are looked at: files may be malicious."""

_WORD = re.compile(r"[^\W_]+")
_NOT_THE_BAR = frozenset({"adj", "adjusted", "volume", "interest", "time", "log"})


class ColumnMatch(NamedTuple):
    """Positions of the columns by what they hold, and the names (`date`, `open`, ...) that have none or several."""

    position: dict[str, int]
    missing: list[str]
    repeated: list[str]
    groups: list[str]
    """Names of the series, if the columns hold prices of several: `AAPL`, `MSFT`."""

    @property
    def has_prices(self) -> bool:
        """Whether each of the four prices has one column."""
        return set(PRICES) <= self.position.keys()


def simplify(name: str) -> str:
    """Return the name in lower case, without numbering, units in brackets, and marks: `1. Open (USD)` is `open`."""
    text = " ".join(name.replace("\ufeff", "").replace("_", " ").split()).casefold().strip("<>\"'#* ")
    text = re.sub(r"^\d+[a-z]?[.:)]\s*", "", text)
    return re.sub(r"\s*[(\[{][^(\[{]*[)\]}]$", "", text) or text


def match_columns(header: Sequence[str], chosen: Mapping[str, str] | None = None) -> ColumnMatch:
    """Find the columns of the date and the four prices in `header`.

    `chosen` gives the names of some of them in the file: it decides for these. Otherwise names count in any case and
    in several languages, with a numbering (`1. open`) or with the name of the series (`AAPL.Open`, `Close_AAPL`) if it
    is the same for all four.
    """
    position: dict[str, int] = {}
    repeated: list[str] = []
    header = [name[:_LONGEST] for name in header[:_MOST]]
    names = [simplify(name) for name in header]
    for wanted in ("date", *PRICES):
        options = (chosen[wanted],) if chosen and wanted in chosen else _NAMES[wanted]
        plain = [name.strip() for name in header] if chosen and wanted in chosen else names
        if chosen and wanted in chosen and options[0].strip() not in plain:
            options, plain = (simplify(options[0]),), names
        for name in options:
            count = plain.count(name.strip())
            if count > 1:
                repeated.append(wanted)
            if count:
                position[wanted] = plain.index(name.strip())
                break
    groups: list[str] = []
    if not any(price in position for price in PRICES):
        series, repeated_in = _prices_by_series(header)
        if len(series) == 1:
            position |= next(iter(series.values()))
            repeated += repeated_in[next(iter(series))]
        elif series:
            groups = sorted(series)
    missing = [wanted for wanted in ("date", *PRICES) if wanted not in position]
    return ColumnMatch(position, missing, repeated, groups)


def _prices_by_series(header: Sequence[str]) -> tuple[dict[str, dict[str, int]], dict[str, list[str]]]:
    """Return the positions of the four prices of each series, from names such as `AAPL.Open` and `('Low', 'AAPL')`.

    Also return, for each series, the prices that it has more than once.
    """
    series: dict[str, dict[str, int]] = {}
    repeated: dict[str, list[str]] = {}
    for column, name in enumerate(header):
        words = _WORD.findall(name.casefold())
        prices = [word for word in words if word in PRICES]
        if len(prices) != 1 or _NOT_THE_BAR & set(words):
            continue
        other_words = [word for word in words if word not in PRICES and not re.fullmatch(r"\d[a-z]?", word)]
        key = " ".join(other_words)
        repeated.setdefault(key, [])
        if prices[0] in series.setdefault(key, {}):
            repeated[key].append(prices[0])
        series[key].setdefault(prices[0], column)
    return {name: columns for name, columns in series.items() if len(columns) == len(PRICES)}, repeated
