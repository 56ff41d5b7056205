"""Metadata that the data file cannot hold, written by `data build` to a small JSON file beside it."""

import json
import logging
import math
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pgat_fast.data.table import Table
from pgat_fast.utils.io import write_json

FORMAT = "pgat-fast data note"
VERSION = 1

_LARGEST = 65_536
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Note:
    """Metadata of a data file."""

    sha256: str
    """Of the data file's bytes, hexadecimal; the note applies to this content only."""
    source: str
    """Source of the prices: sp500, or the name of a file without its folder."""
    targets: str
    """returns or levels."""
    base_price: float
    """Close before the file's first row, in the unit of the prices."""
    first_date: str
    last_date: str
    """ISO dates of the first and the last row."""
    rows: int


def note_path(data_file: Path) -> Path:
    """Return the path of the note on `data_file`: `prices.csv.note.json` beside `prices.csv`."""
    return data_file.with_name(data_file.name + ".note.json")


def write_note(data_file: Path, note: Note) -> None:
    """Write `note` beside `data_file`, atomically; its bytes depend only on `note`. Raises OSError."""
    write_json(note_path(data_file), {"format": FORMAT, "version": VERSION} | asdict(note))


def read_note(table: Table) -> Note | None:
    """Return the note beside the file that `table` was read from, None if there is none.

    A note that cannot be read, or that has the hash of another content, is ignored with a warning.
    """
    if not table.sha256:
        return None
    path = note_path(Path(table.source))
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST)
        note = _parse(json.loads(text))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        _log.warning("%s: no note of `pgat-fast data build`, and ignored: %s", path, reason)
        return None
    if note.sha256 != table.sha256:
        _log.warning(
            "%s: ignored, because it is about another content of the data file: build the file again, or delete the "
            "note and set data.base_price",
            path,
        )
        return None
    return note


def _parse(content: Any) -> Note:
    """Return the note in `content`. Raises ValueError for anything that `write_note` does not write."""
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ValueError(f"it does not say format {FORMAT!r}, version {VERSION}")
    fields = {"sha256": str, "source": str, "targets": str, "base_price": float}
    fields |= {"first_date": str, "last_date": str, "rows": int}
    for name, kind in fields.items():
        if type(content.get(name)) is not kind:
            raise ValueError(f"{name} is missing or no {kind.__name__}")
    note = Note(**{name: content[name] for name in fields})
    if note.targets not in ("returns", "levels"):
        raise ValueError(f"targets is {note.targets!r}, not returns or levels")
    if not (math.isfinite(note.base_price) and note.base_price > 0):
        raise ValueError(f"base_price is {note.base_price}, not a positive number")
    for day in (note.first_date, note.last_date):
        date.fromisoformat(day)
    return note


def resolve_base_price(setting: float | None, note: Note | None, kind: str) -> float:
    """Return the close before the first row of a data file: `setting`, else that of `note`, else 1.

    An unknown close is logged, except for levels (`kind`), whose prices do not depend on it.
    """
    if setting is not None:
        return setting
    if note is not None:
        return note.base_price
    if kind == "returns":
        _log.warning(
            "prices are relative to the close before the first row: nothing tells that close (data.base_price)"
        )
    return 1.0
