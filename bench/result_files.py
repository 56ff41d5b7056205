"""Committed results: `bench/results/MACHINE/DATE/NAME.json`; what needs no machine is in `offline`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pgat_fast.errors import DataError

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = Path(__file__).with_name("results")
Record = dict[str, Any]
"""JSON object: the result of a measurement, only an `error` of one line if it failed."""

_ZEN: Final = {"25, model 1": "zen3", "25, model 17": "zen4", "26, model 2": "zen5"}
"""Family and model of an AMD EPYC processor, whose name can lack its generation -> generation."""


def newest(name: str, machine: str = "*") -> Path | None:
    """Return the newest file `name`, which may contain wildcards, of a machine or of any; None if there is none."""
    return max(RESULTS.glob(f"{machine}/*/{name}"), key=lambda path: (path.parent.name, path.name), default=None)


def load(name: str, machine: str = "*") -> Record:
    """Return the newest result `name` of a machine, by default of any. Raises DataError if there is none."""
    path = newest(f"{name}.json", machine)
    if path is None:
        raise DataError(f"bench/results/{machine}/*/{name}.json is missing: restore the file or repeat the measurement")
    return json.loads(path.read_text(encoding="utf-8"))


def folder_of(description: Mapping[str, Any]) -> Path:
    """Return the folder of results measured today on the machine that `bench.machine.describe` describes."""
    processor = description["processor"] or ""
    words = [description["gpu"] or processor.split(" (")[0]]
    if not description["gpu"]:
        words += [zen for family, zen in _ZEN.items() if f"cpu family {family}," in processor]
        words.append(f"{description['cores']} cores")
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-") / str(description["date"])[:10]
