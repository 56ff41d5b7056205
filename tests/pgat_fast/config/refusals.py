"""Helpers for tests of wrong configurations."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pgat_fast import load_config
from pgat_fast.errors import ConfigError

# Words of pydantic and Python, which mean nothing to a user.
_INTERNAL = re.compile(r"pydantic|https?://|Input should|type=|Config\b|object at 0x|Traceback", re.IGNORECASE)


def refusal(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> str:
    """Return the message of the error that loading `source` raises within 2 seconds of processor time."""
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    assert time.process_time() - start < 2
    text = str(caught.value)
    path = str(source) if isinstance(source, str | Path) else ""
    assert not _INTERNAL.search(text.replace(path, "") if path else text)
    return text


def listed_errors(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> list[str]:
    """Return the errors that loading `source` lists, one a line."""
    lines = refusal(source, overrides).split("\n")
    assert len(lines) == 1 or lines[0] == f"{len(lines) - 1} errors in the configuration:"
    return [line.strip() for line in lines[len(lines) > 1 :]]
