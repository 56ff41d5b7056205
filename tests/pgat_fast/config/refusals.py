"""What the tests of wrong configurations share."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pgat_fast import load_config
from pgat_fast.errors import ConfigError

# Wording of the libraries underneath, which means nothing to a user.
_FOREIGN = re.compile(r"pydantic|https?://|Input should|type=|Config\b|object at 0x|Traceback", re.IGNORECASE)


def refusal(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> str:
    """The error of loading `source`, in the user's words and within 2 seconds, the bar for hostile files.

    Of the processor: what else a machine does is no fault of the file.
    """
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    assert time.process_time() - start < 2
    text = str(caught.value)
    own_name = str(source) if isinstance(source, str | Path) else ""
    assert not _FOREIGN.search(text.replace(own_name, "") if own_name else text)
    return text


def refused_faults(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> list[str]:
    """The faults that the error of loading `source` lists, one a line."""
    lines = refusal(source, overrides).split("\n")
    assert len(lines) == 1 or lines[0] == f"{len(lines) - 1} faults in the configuration:"
    return [line.strip() for line in lines[len(lines) > 1 :]]
