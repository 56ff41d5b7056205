"""Metadata that the data file cannot hold, written by `data build` to a small JSON file beside it."""

import logging
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pgat_fast.data.table import Table
from pgat_fast.utils.io import read_regular_file, write_json

_LARGEST = 65_536
_log = logging.getLogger(__name__)


class Note(BaseModel):
    """Metadata of a data file."""

    model_config = ConfigDict(strict=True, frozen=True)

    format: Literal["pgat-fast data note"]
    version: Literal[1]
    sha256: str
    """Of the data file's bytes, hexadecimal; the note applies to this content only."""
    source: str
    """Source of the prices: sp500, or the name of a file without its folder."""
    targets: Literal["returns", "levels"]
    base_price: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Close before the file's first row, in the unit of the prices."""
    first_date: date
    last_date: date
    """Days of the first and the last row."""
    rows: int
    trading_days: str | None = None
    """Calendar that `data build` was given: `weekly`, for example; None, and left out of the file, for `auto`."""


def note_path(data_file: Path) -> Path:
    """Return the path of the note on `data_file`: `prices.csv.note.json` beside `prices.csv`."""
    return data_file.with_name(data_file.name + ".note.json")


def write_note(data_file: Path, note: Note) -> None:
    """Write `note` beside `data_file`, atomically; its bytes depend only on `note`. Raises OSError."""
    write_json(note_path(data_file), note.model_dump(mode="json", exclude_none=True))


def read_note(table: Table) -> Note | None:
    """Return the note beside the file that `table` was read from, None if there is none.

    A note that cannot be read, or that has the hash of another content, is ignored with a warning.
    """
    path = note_path(Path(table.source))
    if not table.sha256 or not path.exists():
        return None
    advice = "build the data file again, or delete the note and set data.base_price"
    try:
        note = Note.model_validate_json(read_regular_file(path, advice, _LARGEST))
    except OSError as error:
        _log.warning("%s: ignored: %s", path, error)
    except ValidationError as error:
        fault = error.errors()[0]
        location = "".join(f"{name}: " for name in fault["loc"])
        _log.warning("%s: ignored, because it is no note of `pgat-fast data build`: %s%s", path, location, fault["msg"])
    else:
        if note.sha256 == table.sha256:
            return note
        _log.warning("%s: ignored, because the data file has changed since: %s", path, advice)
    return None


def resolve_base_price(setting: float | None, note: Note | None, kind: str) -> float:
    """Return the close before the first row of a data file: `setting`, else that of `note`, else 1.

    An unknown close is logged, except for levels (`kind`), whose prices do not depend on it.
    """
    if setting is not None:
        return setting
    if note is not None:
        return note.base_price
    if kind == "returns":
        _log.warning("prices are relative to the close before the first row, which is unknown: set data.base_price")
    return 1.0
