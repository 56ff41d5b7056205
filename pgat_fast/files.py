"""Writing files so that a reader, or a crash, never sees half of one."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name beside `path`, sync it to disk, rename it. Makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON that any parser reads: NaN and infinities raise ValueError."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
