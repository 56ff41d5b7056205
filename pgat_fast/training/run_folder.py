"""The folder of a run."""

from itertools import count
from pathlib import Path

from pgat_fast.errors import ConfigError


def new_folder(output: Path, name: str) -> Path:
    """Make and return an empty folder `name` in `output`, or `name-2`, `name-3`, ...: no run overwrites another."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            folder = output / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise ConfigError(f"run.output {output}: cannot make a folder there: {error.strerror}") from error
    raise AssertionError("unreachable")
