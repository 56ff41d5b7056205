"""The format of a text with prices: separator, line of the header, columns, form of dates and numbers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from pgat_fast.data.csv_file import UnreadableFileError, is_blank, read_records, shorten
from pgat_fast.data.price_columns import PRICES, UNNAMED, ColumnMatch, match_columns, simplify
from pgat_fast.data.price_dates import is_date
from pgat_fast.data.price_numbers import parse_number
from pgat_fast.errors import DataError

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SEARCHED = 50
"""Number of lines at the start of a file among which the header is looked for."""


@dataclass(frozen=True)
class PriceOptions:
    """What the user states about a file of prices. None is found out from the file."""

    date_format: str | None = None
    """Format of `datetime.strptime`, or s, ms, us or ns since 1970."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names in the file of `date`, `open`, `high`, `low`, `close`, or of some of them."""
    decimal: str | None = None
    """The decimal mark, `.` or `,`."""
    separator: str | None = None
    """The mark between the fields, one character."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in ("date", *PRICES)]
        if unknown:
            raise DataError(f"--columns {unknown[0]}=...: name one of date, {', '.join(PRICES)}")
        if self.decimal not in (None, ".", ","):
            raise DataError(f"--decimal {self.decimal}: give . or ,")
        if self.separator is not None and (len(self.separator) != 1 or self.separator.isalnum()):
            raise DataError(f"--separator {self.separator!r}: give one mark, such as ; or tab")
        if self.separator is not None and self.separator in '"\r\n.':
            raise DataError(f"--separator {self.separator!r}: this mark cannot separate fields")


class PriceRows(NamedTuple):
    """The rows of a file of prices as text, and what is known of its format."""

    header: list[str]
    position: dict[str, int]
    """Column of `date` and of each of the four prices."""
    rows: list[list[str]]
    """[n], one field for each column."""
    lines: list[int]
    """[n], the 1-based line number of each row."""
    separator: str
    described: tuple[str, ...]
    """What differs from a plain CSV file, in words."""


class _Header(NamedTuple):
    separator: str
    line: int
    fields: list[str]
    match: ColumnMatch


def read_rows(text: str, name: str, options: PriceOptions) -> PriceRows:
    """Find the header and the separator of `text`, and split it into rows.

    Lines before the header are left out, and so are the lines of a header with several of them (ticker, units). Every
    row must have as many fields as the header.

    Raises DataError, which starts with `name` and names the line; UnreadableFileError where the text is not CSV.
    """
    header = _find_header(text, options)
    _check_columns(header, name, options)
    rows: list[list[str]] = []
    names_below: list[list[str]] = []
    lines: list[int] = []
    position = dict(header.match.position)
    for line, last_line, fields in _records_from(text, header):
        if last_line > line:
            message = f"a quotation mark opens here and closes on line {last_line}: remove it"
            raise DataError(f"{name}, line {line}: {message}")
        if is_blank(fields):
            continue
        if len(fields) == len(header.fields) + 1 and not fields[-1].strip():
            fields.pop()  # a separator at the end of the line
        if len(fields) != len(header.fields):
            count = f"{len(fields)} fields where the header has {len(header.fields)}"
            message = f"{count}, so a value may stand in the wrong column: correct the line"
            raise DataError(f"{name}, line {line}: {message}")
        if not rows and len(names_below) < 3 and _is_part_of_header(fields, position):
            names_below.append(fields)
            continue
        rows.append(fields)
        lines.append(line)
    if not rows:
        raise DataError(f"{name}: no rows of prices after the header: {header.fields[:10]}")
    if "date" not in position:
        position["date"] = _date_column(header, names_below, rows[0], name)
    return PriceRows(header.fields, position, rows, lines, header.separator, _describe(header, names_below, position))


def has_prices(text: str, options: PriceOptions) -> bool:
    """Return whether `text` has a header with at least three of the date and the four prices."""
    match = _find_header(text, options).match
    return len(match.position) >= 3 or bool(match.groups)


def first_fields(text: str) -> list[str]:
    """Return the fields of the first line that is not blank, separated by commas; none if it is not CSV."""
    try:
        return next((fields for _, _, fields in read_records(text) if not is_blank(fields)), [])
    except UnreadableFileError:
        return []


def _find_header(text: str, options: PriceOptions) -> _Header:
    """Return the first line that names the four prices; else the one that names most, at best the first one."""
    best: tuple[int, _Header] | None = None
    separators = [options.separator] if options.separator else list(SEPARATORS)
    for separator in separators:
        records = islice(_records(text, separator), _SEARCHED)
        for line, _, fields in records:
            match = match_columns(fields, options.columns)
            score = len(match.position) + 10 * match.has_prices + 5 * bool(match.groups)
            if best is None or score > best[0]:
                best = (score, _Header(separator, line, fields, match))
    if best is None:
        # Not a single record: the reader gives the reason.
        for _ in read_records(text, separators[0]):
            break
        raise DataError("no line holds fields: name a CSV file of prices")
    return best[1]


def _records(text: str, separator: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the records that are not blank, up to the first one that is not CSV."""
    try:
        yield from (record for record in read_records(text, separator) if not is_blank(record[2]))
    except UnreadableFileError:
        return


def _records_from(text: str, header: _Header) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the records after the header."""
    return (record for record in read_records(text, header.separator) if record[0] > header.line)


def _check_columns(header: _Header, name: str, options: PriceOptions) -> None:
    """Raise DataError unless each price, and the date if it has a name, has one column."""
    match = header.match
    shown = ", ".join(shorten(field) for field in header.fields[:10])
    suffix = f" and {len(header.fields) - 10} more" if len(header.fields) > 10 else ""
    place = "the first line" if header.line == 1 else f"line {header.line}"
    listed = f"{place} has {shown}{suffix}"
    advice = "name the columns date, open, high, low, close, or give --columns such as open=NAME"
    if {"log_close", "log_open"} <= {field.strip().casefold() for field in header.fields}:
        raise DataError(f"{name}: this is a data file that was built already: name the file of prices")
    if match.groups:
        series = ", ".join(match.groups[:5]) + (", ..." if len(match.groups) > 5 else "")
        raise DataError(
            f"{name}: prices of {len(match.groups)} series ({series}): choose one with --columns open=NAME ..."
        )
    absent = [wanted for wanted in options.columns if wanted not in match.position]
    if absent:
        raise DataError(f"{name}: no column {options.columns[absent[0]]!r}, given for {absent[0]}: {listed}")
    missing = [wanted for wanted in match.missing if wanted != "date"]
    if missing:
        raise DataError(f"{name}: no column {', '.join(match.missing)}: {listed}; {advice}")
    if match.repeated:
        raise DataError(f"{name}: more than one column {', '.join(match.repeated)}: {listed}; {advice}")


def _is_part_of_header(fields: Sequence[str], position: Mapping[str, int]) -> bool:
    """Return whether a line below the header belongs to it: it has no date, and text or nothing for the prices."""
    start = fields[position.get("date", 0)].strip()
    if is_date(start) or any(mark.isdigit() for mark in start):
        return False
    cells = [fields[position[price]].strip() for price in PRICES]
    # A row whose date or prices are missing is a fault, a line of names or units is none.
    named = start.casefold() in ("date", "datetime", "ticker", "tickers", "price", "symbol")
    return (named or any(cells)) and not any(parse_number(cell, mark) is not None for cell in cells for mark in ".,")


def _date_column(header: _Header, names_below: list[list[str]], first_row: list[str], name: str) -> int:
    """Return the column of dates if the header's main line does not name it: a later line may, or it is an index."""
    for fields in names_below:
        match = match_columns(fields)
        if "date" in match.position:
            return match.position["date"]
    index_names = (*UNNAMED, "price", "ticker") if names_below or header.line > 1 else UNNAMED
    if simplify(header.fields[0]) in index_names and is_date(first_row[0]):
        return 0
    shown = ", ".join(shorten(field) for field in header.fields[:10])
    raise DataError(
        f"{name}: no column date: line {header.line} has {shown}; name it date, or give --columns date=NAME"
    )


def _describe(header: _Header, names_below: list[list[str]], position: Mapping[str, int]) -> tuple[str, ...]:
    described = []
    if header.line > 1:
        described.append(f"header on line {header.line}")
    if names_below:
        described.append(f"a header of {1 + len(names_below)} lines")
    if header.separator != ",":
        described.append(f"fields separated by {SEPARATORS.get(header.separator, repr(header.separator))}s")
    named = [
        f"{wanted}={header.fields[position[wanted]]!r}"
        for wanted in ("date", *PRICES)
        if header.fields[position[wanted]].strip().casefold() != wanted
    ]
    if named:
        described.append(f"columns {', '.join(named)}")
    adjusted = next((name for name in header.fields if simplify(name) in ("adj close", "adjusted close")), None)
    if adjusted is not None and described and header.fields[position["close"]] != adjusted:
        described.append(f"{adjusted!r} is not read")
    return tuple(described)
