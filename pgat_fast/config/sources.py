"""Where settings come from: files, mappings and overrides, all read into one form."""

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pgat_fast.config.messages import SECTIONS, shown
from pgat_fast.config.yaml_reader import MAX_BYTES, REFUSED, read, shown_key
from pgat_fast.errors import ConfigError

# Overrides come behind every line of a file in the list of faults.
_AFTER_FILES: Final = 10**6


class Fault(NamedTuple):
    """What is wrong, and where in the list of all faults it belongs."""

    order: int
    text: str


@dataclass(frozen=True)
class Given:
    """One setting as the user gave it.

    `key`: as written, with the section where it stands in one. `where`: `file:line`, the override, or ""
    for a setting of a mapping. `order`: where its fault belongs in the list of all faults.
    """

    key: str
    value: Any
    where: str = ""
    order: int = 0

    def fault(self, message: str, key: str | None = None) -> Fault:
        """The fault `message` about this setting, whose present full name is `key`."""
        name = shown_key(self.key)
        if key is not None:
            name = key if key.endswith(self.key.rpartition(".")[2]) else f"{name} (now {key})"
        return Fault(self.order, (f"{self.where}: " if self.where else "") + f"{name}: {message}")


def file_settings(path: str | Path) -> tuple[list[Given], list[Fault]]:
    """The settings of the YAML file at `path`, and what is wrong with it.

    Raises ConfigError where it cannot be read to its end, is empty or holds no mapping.
    """
    document = read(_text_of(Path(path)))
    faults = [Fault(line, f"{path}:{line}: {message}") for line, message in document.faults]
    if document.value is REFUSED:
        raise ConfigError(listed(faults))
    if document.value is None:
        raise ConfigError(f"{path}: the file is empty: write at least one setting")
    if not isinstance(document.value, Mapping):
        found = "a list" if isinstance(document.value, list) else f"only {shown(document.value)}"
        raise ConfigError(f"{path}:1: expected settings, one `name: value` a line, found {found}")

    def given(value: Any, *keys: str) -> Given:
        line = document.lines[keys]
        return Given(".".join(keys), value, f"{path}:{line}", line)

    return [given(value, *keys) for keys, value in _leaves(document.value)], faults


def mapping_settings(mapping: Mapping[Any, Any]) -> tuple[list[Given], list[Fault]]:
    """The settings of a Python `mapping`, and what is wrong with it. A tuple counts as a list."""
    settings, faults = [], []
    for keys, value in _leaves(mapping):
        if all(isinstance(key, str) for key in keys):
            settings.append(Given(".".join(keys), list(value) if isinstance(value, tuple) else value))
        else:
            faults.append(Fault(0, f"{shown(keys[-1])}: a key must be text"))
    return settings, faults


def override_settings(overrides: Sequence[str]) -> tuple[list[Given], list[Fault]]:
    """The settings that texts `key=value` give, and what is wrong with them."""
    if isinstance(overrides, str):
        raise ConfigError(f"overrides are a list of texts `key=value`, not the one text {shown(overrides)}")
    settings, faults = [], []
    for order, text in enumerate(overrides, start=_AFTER_FILES):
        where = f"override {shown(text)}"
        if not isinstance(text, str) or "=" not in text:
            faults.append(Fault(order, f"{where}: expected key=value, such as training.epochs=5"))
            continue
        if len(text) > MAX_BYTES:
            faults.append(Fault(order, f"{where}: longer than {MAX_BYTES} characters"))
            continue
        key, _, written = text.partition("=")
        document = read(written)
        given = Given(key.strip(), document.value, where, order)
        faults += [given.fault(message) for _, message in document.faults]
        if isinstance(document.value, Mapping):
            message = "expected one value or a list [a, b], found a mapping: quote text with `: `"
            faults.append(given.fault(message))
        elif not document.faults:
            settings.append(given)
    return settings, faults


def listed(faults: Sequence[Fault]) -> str:
    """All `faults` as one message, one a line."""
    texts = [fault.text for fault in sorted(faults, key=lambda fault: fault.order)]
    if len(texts) == 1:
        return texts[0]
    return "\n  ".join([f"{len(texts)} faults in the configuration:", *texts])


def _leaves(root: Mapping[Any, Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The keys and value of each setting, in sections or flat; a section without a value holds none."""
    for key, value in root.items():
        if key in SECTIONS and isinstance(value, Mapping):
            yield from (((key, name), inner) for name, inner in value.items())
        elif key not in SECTIONS or value is not None:
            yield (key,), value


def _text_of(path: Path) -> str:
    """The text of a configuration file. Only a regular file is opened: a pipe could keep us waiting."""
    try:
        kind = path.stat().st_mode
        content = b""
        if stat.S_ISREG(kind):
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{shown(str(path))}: cannot be read: {error}") from error
    if not stat.S_ISREG(kind):
        found = "a directory" if stat.S_ISDIR(kind) else "not a regular file"
        raise ConfigError(f"{path}: this is {found}; a configuration is a YAML file")
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES // 1024} KiB: this is no configuration file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text: save the file as UTF-8") from error
