"""Read settings from files, mappings and overrides into one form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pgat_fast.config.errors import Problem, format_value
from pgat_fast.config.schema import SECTIONS
from pgat_fast.config.yaml_reader import MAX_BYTES, YamlError, format_key, read
from pgat_fast.errors import ConfigError
from pgat_fast.utils.io import read_regular_file

_AFTER_FILES: Final = 10**6
"""The position of the first override: behind every line of a file."""


@dataclass(frozen=True)
class Setting:
    """A setting as the user gave it.

    Args:
        key: as written, after the section it stands in, if any.
        value: as written.
        source: `file:line`, the override, or "" for a setting of a mapping.
        position: where its errors belong in the list of all errors.
    """

    key: str
    value: Any = None
    source: str = ""
    position: int = 0

    def problem(self, message: str, key: str | None = None) -> Problem:
        """Return `message` as an error of this setting, whose current full name is `key`."""
        name = format_key(self.key)
        if key is not None:
            name = key if key.endswith(self.key.rpartition(".")[2]) else f"{name} (now {key})"
        return Problem(self.position, (f"{self.source}: " if self.source else "") + f"{name}: {message}")


def read_file(path: str | Path) -> list[Setting]:
    """Return the settings of the YAML file at `path`. Raises ConfigError if it is not YAML that is accepted."""
    name = str(path) if str(path).isprintable() else ascii(str(path))
    try:
        content = read_regular_file(Path(path), "name a YAML file with settings", MAX_BYTES)
        document, lines = read(content.decode("utf-8", "surrogateescape"))  # `read` refuses surrogates, with their line
    except OSError as error:
        raise ConfigError(f"{name}: {error}") from None
    except YamlError as error:
        raise ConfigError(f"{name}:{error.line}: {error}") from None
    if document is None:
        raise ConfigError(f"{name}: the file is empty: write at least one setting")
    if not isinstance(document, dict):
        kind = "a list" if isinstance(document, list) else f"only {format_value(document)}"
        raise ConfigError(f"{name}:1: expected settings, one `name: value` a line, found {kind}")
    return [Setting(".".join(keys), value, f"{name}:{lines[keys]}", lines[keys]) for keys, value in _flatten(document)]


def read_mapping(mapping: Mapping[Any, Any]) -> list[Setting]:
    """Return the settings of a Python mapping, in which a tuple counts as a list."""
    return [
        Setting(".".join(map(str, keys)), list(value) if isinstance(value, tuple) else value)
        for keys, value in _flatten(mapping)
    ]


def read_overrides(overrides: Sequence[str]) -> tuple[list[Setting], list[Problem]]:
    """Return the settings in texts `key=value`, and the errors in those that are not accepted."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides are a list of texts `key=value`, not the one text {format_value(overrides)}")
    settings, problems = [], []
    for position, override in enumerate(overrides, start=_AFTER_FILES):
        key, equals, text = str(override).partition("=")
        setting = Setting(key.strip(), None, f"override {format_value(override)}", position)
        try:
            if not equals:
                raise YamlError("expected key=value, such as training.epochs=5")
            value, lines = read(text)
            if lines:
                raise YamlError("expected one value or a list [a, b], found a mapping: quote text with `: `")
            settings.append(replace(setting, value=value))
        except YamlError as error:
            problems.append(setting.problem(str(error)))
    return settings, problems


def _flatten(root: Mapping[Any, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield the keys and the value of each setting, in sections or flat; an empty section holds none."""
    for key, value in root.items():
        if key in SECTIONS and isinstance(value, Mapping):
            yield from (((key, name), item) for name, item in value.items())
        elif key not in SECTIONS or value is not None:
            yield (key,), value
